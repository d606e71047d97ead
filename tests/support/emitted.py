"""Reads logged events, and checks that each has its declared fields with their declared types."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_origin, get_type_hints

import pytest

from core.observability.events import EVENTS, Event


def emitted(caplog: pytest.LogCaptureFixture, name: str) -> list[Event]:
    """Return the logged events with this name, in order."""
    found = [record.msg for record in caplog.records if isinstance(record.msg, Event) and record.msg.name == name]
    for event in found:
        assert_as_declared(name, event.fields())
    return found


def logged(text: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield the events with this name from a log in JSON."""
    for line in text.splitlines():
        if line.startswith("{") and (found := json.loads(line))["event"] == name:
            assert_as_declared(name, found)
            yield found


def assert_as_declared(name: str, fields: Mapping[str, Any]) -> None:
    """Check that an event of Rota has its declared fields. Lines of jobs and of libraries have no declaration."""
    for field, declared in declared_fields(name).items():
        assert field in fields, f"{name} has no {field}: {dict(fields)}"
        expected = (int, float) if declared is float else declared
        assert isinstance(fields[field], expected), f"{name}.{field} is {fields[field]!r}, not {declared}"


def declared_fields(name: str) -> dict[str, Any]:
    """Return the declared fields of an event, with their types."""
    hints = get_type_hints(EVENTS[name]) if name in EVENTS else {}
    return {field: declared for field, declared in hints.items() if get_origin(declared) is not ClassVar}
