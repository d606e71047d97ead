"""The alerts and the dashboard: they name metrics that exist, and each alert is tested and described."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from starlette.routing import Match

from core.web import app
from deploy.grafana import dashboard

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((DEPLOY / "prometheus/rota.rules.yml").read_text())["groups"]
    for rule in group["rules"]
}
TESTS = yaml.safe_load((DEPLOY / "prometheus/rota.tests.yml").read_text())["tests"]
PAGE = (ROOT / "docs/alerts.md").read_text()
APPLICATION = app.make(None)
METRIC = re.compile(r"\b(?:scheduled_task|rota)_\w+\b")


def described() -> set[str]:
    """Return the names of all series of the metrics that docs/metrics.md describes."""
    rows = [line for line in (ROOT / "docs/metrics.md").read_text().splitlines() if line.startswith("| `")]
    names = {row.split("`")[1] for row in rows}
    histograms = {row.split("`")[1] for row in rows if " | Histogram: " in row}
    return (names - histograms) | {f"{name}_{end}" for name in histograms for end in ("bucket", "count", "sum")}


def is_page(path: str) -> bool:
    """Return whether `rota web` has a route for a browser that opens ``path``."""
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    return any(route.matches(scope)[0] == Match.FULL for route in APPLICATION.routes)


def named(expression: str) -> set[str]:
    """Return the metrics of an expression. Texts such as ``rota_web="…"`` are no metrics."""
    return set(METRIC.findall(re.sub(r'"[^"]*"', '""', expression)))


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_names_metrics_that_exist_and_says_where_to_look(alert):
    rule = RULES[alert]

    assert named(rule["expr"])
    assert named(rule["expr"]) <= described()
    assert rule["labels"]["severity"] in {"warning", "critical"}
    address = rule["annotations"]["runbook_url"].removeprefix("{{ $externalLabels.rota_web }}")
    assert ("{{ $labels.task }}" in address) == ("by (task" in rule["expr"])
    path = urlsplit(address.replace("{{ $labels.task }}", "close-day")).path
    assert is_page(path), f"rota web has no page {path}"
    assert path != "/why", "this page explains one slot, and an alert does not know which"


def test_each_alert_is_tested_to_fire_and_not_to_fire_and_is_described():
    well, *others = TESTS
    fired = [case["alertname"] for test in others for case in test["alert_rule_test"] if case["exp_alerts"]]

    assert sorted(fired) == sorted(RULES)
    assert [case["alertname"] for case in well["alert_rule_test"]] == list(RULES)
    assert re.findall(r"^\| `(Rota\w+)` \|", PAGE, re.MULTILINE) == list(RULES)


def test_the_dashboard_names_metrics_that_exist_and_shows_those_of_queues():
    names = set().union(*map(named, dashboard.expressions()))

    assert names <= described()
    assert {"rota_queue_waiting", "rota_queue_oldest_seconds"} <= names


def test_the_dashboard_is_as_its_program_writes_it():
    assert dashboard.FILE.read_text() == dashboard.text(), "run python deploy/grafana/dashboard.py"


def test_the_panels_of_the_dashboard_do_not_overlap():
    taken = set()
    for panel in dashboard.dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < dashboard.WIDTH
        taken |= cells
