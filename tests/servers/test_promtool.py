"""Prometheus' own tool reads every rule and every expression of the dashboard, and runs the tests of the alerts."""

import subprocess
from pathlib import Path

import yaml

from deploy.grafana import dashboard
from tests.support.servers import PROMTOOL

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES, TESTS = DEPLOY / "prometheus/rota.rules.yml", DEPLOY / "prometheus/rota.tests.yml"


def promtool(*words: str | Path) -> str:
    """Return the output of a command that must succeed."""
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    assert "rules found" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("test", "rules", TESTS)


def test_every_expression_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    read = [each.replace("$__rate_interval", "5m") for each in dashboard.expressions()]
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(read)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    assert f"{len(read)} rules found" in promtool("check", "rules", tmp_path / "rules.yml")
