"""Instants, spans and results as text for people."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from core.jobs import grid
from core.jobs.schedules import Every, parse


def local(instant: datetime | None, *, missing: str = "") -> str:
    """Return an instant on this machine's clock, to the second."""
    return f"{instant.astimezone():%Y-%m-%d %H:%M:%S}" if instant else missing


def local_zone(now: datetime) -> str:
    """Return the name of this machine's time zone."""
    return now.astimezone().strftime("%Z")


def span(duration: timedelta) -> str:
    """Return a span as text: ``12 ms``, ``1.25 s``, ``42 s``, ``5 min``, ``3 h 20 min``, ``2 days 4 h``."""
    seconds = abs(duration.total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def due_in_backoff(spec: str, stretch: int) -> str:
    """Return which slots of a schedule come due in a back-off: ``one slot in 4``, ``the first slot in each 20 min``."""
    schedule = parse(spec) if grid.is_readable(spec) else None
    if schedule is None or isinstance(schedule, Every):
        return f"one slot in {1 << stretch}"
    return f"the first slot in each {span(timedelta(seconds=grid.step(schedule) << stretch))}"


def either(names: Sequence[str]) -> str:
    """Return the names as alternatives: ``queued, retrying or running``."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def brief(value: Any, *, longest: int = 120) -> str:
    """Return a result or progress in a few words."""
    if value is None:
        return ""
    words = ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)
    return words if len(words) <= longest else f"{words[: longest - 1]}…"
