"""The events that were logged, as they were emitted."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from core.observability.events import Event


def emitted(caplog: pytest.LogCaptureFixture, name: str) -> list[Event]:
    """The events called ``name``, in order."""
    return [record.msg for record in caplog.records if isinstance(record.msg, Event) and record.msg.name == name]


def logged(text: str, name: str) -> Iterator[dict[str, Any]]:
    """The lines of a log in JSON that tell of events called ``name``."""
    for line in text.splitlines():
        if line.startswith("{") and (found := json.loads(line))["event"] == name:
            yield found
