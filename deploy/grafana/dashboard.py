"""Writes the Grafana dashboard ``rota.json`` from the panels below: ``python deploy/grafana/dashboard.py``.

The dashboard is for Grafana 10 or newer. At its import, Grafana asks for the data source.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("rota.json")
SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
WIDTH, HEIGHT, PANELS_IN_A_ROW = 24, 8, 2


@dataclass(frozen=True)
class Panel:
    """A chart with one expression. ``legend`` names a series by its labels."""

    title: str
    expression: str
    legend: str = ""
    unit: str = "short"
    about: str = ""


def quantile(metric: str, by: str = "") -> str:
    """Return the 99th percentile of a histogram."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile(0.99, sum by ({labels}) (rate({metric}_bucket{TASKS}[$__rate_interval])))"


#: The jobs that are chosen at the top of the dashboard.
TASKS = '{task=~"$task"}'
#: The rows of the dashboard, with their panels.
ROWS = {
    "Jobs": (
        Panel(
            "Outcomes",
            f"sum by (status) (rate(scheduled_task_total{TASKS}[$__rate_interval]))",
            "{{status}}",
            "ops",
            "Attempts and runs by their outcome, per second.",
        ),
        Panel(
            "Dead, missed and skipped runs",
            'sum by (task, status) (increase(scheduled_task_total{task=~"$task", status=~"dead|missed|skipped"}[1h]))',
            "{{task}} {{status}}",
            about="In the last hour.",
        ),
        Panel("Overdue slots", f"max by (task) (rota_slots_overdue{TASKS})", "{{task}}"),
        Panel("Lateness, 99 %", quantile("rota_start_lateness_seconds", "task"), "{{task}}", "s"),
        Panel("Duration, 99 %", quantile("scheduled_task_duration_seconds", "task"), "{{task}}", "s"),
        Panel(
            "Time since the last success",
            f"time() - (max by (task) (rota_last_success_timestamp_seconds{TASKS}) > 0)",
            "{{task}}",
            "s",
        ),
    ),
    "Queues": (
        Panel("Waiting runs", "max by (queue) (rota_queue_waiting)", "{{queue}}"),
        Panel("Wait of the oldest run", "max by (queue) (rota_queue_oldest_seconds)", "{{queue}}", "s"),
        Panel("Runs that wait for a limit", "max by (limit) (rota_runs_limited)", "{{limit}}"),
        Panel("Active pauses", "max by (scope) (rota_paused) > 0", "{{scope}}"),
    ),
    "Schedules made at run time": (
        Panel("Schedules", f"max by (task, state) (rota_schedules{TASKS})", "{{task}} {{state}}"),
        Panel("Lag of their slots", f"max by (task) (rota_schedules_lag_seconds{TASKS})", "{{task}}", "s"),
    ),
    "Processes": (
        Panel("Leading dispatchers", "sum(rota_dispatcher_leader)", "leaders", about="1, or 0 while nobody leads."),
        Panel(
            "Duration of the dispatcher's passes, 99 %",
            "histogram_quantile(0.99, sum by (le) (rate(rota_dispatcher_pass_seconds_bucket[$__rate_interval])))",
            "pass",
            "s",
        ),
        Panel("Processes by their source of runs", "sum by (by) (rota_travelling)", "{{by}}"),
        Panel("Dead processes", "sum by (kind) (increase(rota_processes_reaped_total[1h]))", "{{kind}}"),
        Panel(
            "Connections to PostgreSQL", "sum by (instance, state) (rota_db_pool_connections)", "{{instance}} {{state}}"
        ),
        Panel("Broken plugins", "min by (plugin) (rota_plugin_up) == 0", "{{plugin}}"),
    ),
    "The HTTP service": (
        Panel(
            "Requests",
            "sum by (code) (rate(rota_web_requests_seconds_count[$__rate_interval]))",
            "{{code}}",
            "reqps",
        ),
        Panel(
            "Duration of requests, 99 %",
            "histogram_quantile(0.99, sum by (route, le) (rate(rota_web_requests_seconds_bucket[$__rate_interval])))",
            "{{route}}",
            "s",
        ),
        Panel("Refused callers", "sum by (code) (increase(rota_web_refused_total[1h]))", "{{code}}"),
        Panel(
            "Runs that operations changed",
            "sum by (action, outcome) (increase(rota_operation_items_total[1h]))",
            "{{action}} {{outcome}}",
        ),
    ),
}


def expressions() -> list[str]:
    """Return all expressions of the dashboard, with their variables."""
    return [panel.expression for panels in ROWS.values() for panel in panels]


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    return {
        "__inputs": [{"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}],
        "__requires": [{"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"}],
        "uid": "rota",
        "title": "Rota",
        "tags": ["rota"],
        "timezone": "browser",
        "schemaVersion": 38,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [chosen_tasks()]},
        "panels": placed(),
    }


def chosen_tasks() -> dict[str, Any]:
    """Return the variable with the jobs that are shown."""
    return {
        "name": "task",
        "label": "Job",
        "type": "query",
        "datasource": SOURCE,
        "query": "label_values(scheduled_task_total, task)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def placed() -> list[dict[str, Any]]:
    """Return the rows and their panels, with their places in the grid."""
    found: list[dict[str, Any]] = []
    top = 0
    for title, panels in ROWS.items():
        found.append({"id": len(found) + 1, "type": "row", "title": title, "gridPos": place(0, top, WIDTH, 1)})
        top += 1
        for number, panel in enumerate(panels):
            width = WIDTH // PANELS_IN_A_ROW
            left = number % PANELS_IN_A_ROW * width
            found.append(chart(panel, len(found) + 1, place(left, top, width, HEIGHT)))
            top += HEIGHT if left + width == WIDTH or number == len(panels) - 1 else 0
    return found


def place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    """Return a place in the grid."""
    return {"x": left, "y": top, "w": width, "h": height}


def chart(panel: Panel, number: int, position: dict[str, int]) -> dict[str, Any]:
    """Return a panel as a time series."""
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 10}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [{"refId": "A", "datasource": SOURCE, "expr": panel.expression, "legendFormat": panel.legend}],
    }


def text() -> str:
    """Return the file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
