"""Writes ``docs/events.md`` from the declarations of the events: ``python docs/events.py``."""

import logging
from dataclasses import fields
from pathlib import Path

from core.observability.events import EVENTS, Event

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Events

This page lists every event that Rota logs, with its level, its fields and its meaning. Names of events and of fields do
not change, so dashboards and alerts may use them. In JSON, a line has the fields of its event, and `timestamp`,
`level`, `event` and `logger`. A warning or an error also has a text for people as `text`, and its traceback, if there
is one, as `exception`. Spans are in seconds. Lines of a run also have `job`, `run`, `slot` and `attempt`.
[Operating](operating.md#the-log) describes the log.

`python docs/events.py` writes this page.
"""
TITLES = {"redis": "Redis", "ledger_feed": "Ledger feed", "up": "rota up"}


def page() -> str:
    """The page as Markdown: a table for each topic."""
    topics: dict[str, list[type[Event]]] = {}
    for declared in EVENTS.values():
        topics.setdefault(declared.name.partition(".")[0], []).append(declared)
    return HEAD + "".join(table(topic, declared) for topic, declared in topics.items())


def table(topic: str, declared: list[type[Event]]) -> str:
    """The events of one topic."""
    rows = "\n".join(row(each) for each in declared)
    title = TITLES.get(topic, topic.capitalize())
    return f"\n## {title}\n\n| Event | Level | Fields | What it means, and what to do |\n|---|---|---|---|\n{rows}\n"


def row(declared: type[Event]) -> str:
    """An event: its name, level, fields and docstring."""
    named = ", ".join(f"`{field.name}`" for field in fields(declared)) or "–"
    meaning = " ".join(str(declared.__doc__).split())
    return f"| `{declared.name}` | {logging.getLevelName(declared.level).lower()} | {named} | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(page())
