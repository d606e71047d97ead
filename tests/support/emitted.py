"""The events that were logged, as they were emitted; each must have its declared fields, of their declared types."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_origin, get_type_hints

import pytest

from core.observability.events import EVENTS, Event


def emitted(caplog: pytest.LogCaptureFixture, name: str) -> list[Event]:
    """The events called ``name``, in order."""
    found = [record.msg for record in caplog.records if isinstance(record.msg, Event) and record.msg.name == name]
    for event in found:
        assert_as_declared(name, event.fields())
    return found


def logged(text: str, name: str) -> Iterator[dict[str, Any]]:
    """The lines of a log in JSON that tell of events called ``name``."""
    for line in text.splitlines():
        if line.startswith("{") and (found := json.loads(line))["event"] == name:
            assert_as_declared(name, found)
            yield found


def assert_as_declared(name: str, fields: Mapping[str, Any]) -> None:
    """An event of ours has what its declaration promises; lines of jobs and libraries promise nothing."""
    for field, declared in declared_fields(name).items():
        assert field in fields, f"{name} has no {field}: {dict(fields)}"
        expected = (int, float) if declared is float else declared
        assert isinstance(fields[field], expected), f"{name}.{field} is {fields[field]!r}, not {declared}"


def declared_fields(name: str) -> dict[str, Any]:
    """The fields of the event called ``name``, with their types."""
    hints = get_type_hints(EVENTS[name]) if name in EVENTS else {}
    return {field: declared for field, declared in hints.items() if get_origin(declared) is not ClassVar}
