"""How the pages show instants and spans: in a named time zone, with UTC in the title."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from markupsafe import Markup

from core.clock import system_clock
from core.ledger.models import State
from core.operations import wording
from core.operations.runs import Run

TIME = Markup('<time datetime="{}" title="{}, {}">{}</time>')
#: An instant that is farther away than this is shown with its year.
WITH_YEAR = timedelta(days=300)


def when(instant: datetime | None, zone: str | ZoneInfo = "UTC") -> Markup | str:
    """Return an instant in ``zone``: the time with the zone's abbreviation, and the date unless it is today."""
    if instant is None:
        return "–"
    title = f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return TIME.format(utc(instant), title, relative(instant), in_words(instant, zone))


def in_words(instant: datetime, zone: str | ZoneInfo = "UTC") -> str:
    """Return an instant as text, such as ``20:24:18 GMT`` or ``Fri 27 Nov 20:24:18 GMT``."""
    now = system_clock()
    there = instant.astimezone(ZoneInfo(zone) if isinstance(zone, str) else zone)
    if there.date() == now.astimezone(there.tzinfo).date():
        return f"{there:%H:%M:%S %Z}"
    year = " %Y" if abs(now - instant) > WITH_YEAR else ""
    return format(there, f"%a {there.day} %b{year} %H:%M:%S %Z")


def utc(instant: datetime) -> str:
    """Return an instant as text for an address."""
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def clock(instant: datetime, zone: str | ZoneInfo, before: datetime | None = None) -> str:
    """Return a short time of day without its zone, which the page names; with the day unless it is that of ``before``
    or today.
    """
    place = ZoneInfo(zone) if isinstance(zone, str) else zone
    there = instant.astimezone(place)
    is_same_day = there.date() == (before or system_clock()).astimezone(place).date()
    seconds = f":{there:%S}" if there.second else ""
    return f"{'' if is_same_day else f'{there:%a} '}{there:%H:%M}{seconds}"


def relative(instant: datetime) -> str:
    """Return how long ago an instant was, or how long until it comes."""
    distance = system_clock() - instant
    return f"{span(distance)} ago" if distance >= timedelta() else f"in {span(distance)}"


def span(duration: timedelta | float | None) -> str:
    """Return a span, which may be in seconds, as text."""
    if duration is None:
        return "–"
    return wording.span(duration if isinstance(duration, timedelta) else timedelta(seconds=duration))


def count(number: int | float) -> str:
    """Return a number with commas between thousands."""
    return f"{number:,}"


def late(run: Run) -> timedelta | None:
    """Return how long after its slot the first attempt of a run began, or None if that is not known."""
    is_known = run.slot is not None and run.started_at is not None and run.attempt == 1
    return run.started_at - run.slot if is_known and run.state in {State.RUNNING, State.SUCCEEDED} else None  # type: ignore[operator]


def took(run: Run) -> timedelta | None:
    """Return how long the last attempt of a run has taken, or takes so far."""
    if run.started_at is None or run.state in {State.SKIPPED, State.MISSED, State.ORPHANED}:
        return None
    if run.state == State.RUNNING:
        return system_clock() - run.started_at
    return run.finished_at - run.started_at if run.finished_at is not None else None
