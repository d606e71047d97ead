"""Parses times as people write them, such as ``03:00``, ``2026-03-29 01:30``, ``2026-03-29T01:30+00:00`` and ``2h``."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from core.errors import BadTime

TIME_OF_DAY = re.compile(r"\d{1,2}:\d\d(:\d\d)?")
WITH_SECONDS = re.compile(r":\d\d:\d\d")
SPAN = re.compile(r"(\d+[smhdw])+")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
#: Times that are shown or compared are between these, so that no arithmetic and no time zone leaves the calendar.
EARLIEST, LATEST = datetime(1971, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Moment:
    """The periods in which clocks show a given time.

    If the clocks go back at that time, there are two periods. If they go forward and skip the time, the period begins
    before the change and ends after it.
    """

    #: The start and the end of each period, in UTC. The end is excluded.
    stretches: tuple[tuple[datetime, datetime], ...]
    #: A sentence about the change of clocks, if the clocks change at that time.
    note: str = ""

    @property
    def start(self) -> datetime:
        """The start of the first period."""
        return self.stretches[0][0]

    @property
    def end(self) -> datetime:
        """The end of the last period."""
        return self.stretches[-1][1]


def read(text: str, zone: ZoneInfo, now: datetime) -> Moment:
    """Parse ``text`` as a time in ``zone``. A time of day means its newest occurrence not after ``now``.

    Without seconds, the time means the whole minute. Raises ValueError.
    """
    text = text.strip()
    width = SECOND if WITH_SECONDS.search(text) else MINUTE
    if TIME_OF_DAY.fullmatch(text):
        return newest(time.fromisoformat(text.zfill(5) if width == MINUTE else text.zfill(8)), zone, now, width)
    instant = datetime.fromisoformat(text)
    if instant.utcoffset() is not None:
        start = instant.astimezone(UTC).replace(microsecond=0)
        return Moment(((start, start + width),))
    return on_the_wall(instant.replace(microsecond=0), zone, width)


def newest(of_day: time, zone: ZoneInfo, now: datetime, width: timedelta) -> Moment:
    """Return the newest occurrence, already begun, of a time of day."""
    today = now.astimezone(zone).date()
    for days in range(3):
        moment = on_the_wall(datetime.combine(today - timedelta(days=days), of_day), zone, width)
        if moment.start <= now:
            return moment
    raise AssertionError("unreachable")


def on_the_wall(wall: datetime, zone: ZoneInfo, width: timedelta) -> Moment:
    """Return the periods of a naive time in ``zone``."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first == second:
        return Moment(((first, first + width),))
    said = f"{wall:%H:%M} on {wall:%Y-%m-%d}"
    if first < second:
        note = f"{said} occurred twice in {zone.key}, since the clocks went back; give an offset to tell them apart."
        return Moment(((first, first + width), (second, second + width)), note)
    note = (
        f"{said} did not exist in {zone.key}, since the clocks went forward; slots of that time came due after the gap."
    )
    return Moment(((second, first + width),), note)


def span(text: str) -> timedelta:
    """Parse a span such as ``90m`` or ``1d12h``: weeks, days, hours, minutes, seconds.

    Raises ValueError or OverflowError.
    """
    if not SPAN.fullmatch(text):
        raise ValueError("expected a span such as 30m, 2h or 1d12h")
    return sum((timedelta(**{UNITS[unit]: int(count)}) for count, unit in re.findall(r"(\d+)(\w)", text)), timedelta())


def within(instant: datetime, option: str) -> datetime:
    """Return ``instant``. Raises BadTime, naming ``option``, unless it is from 1971 to 2199."""
    if not EARLIEST < instant < LATEST:
        raise BadTime("give a time from 1971 to 2199", option)
    return instant


def past(text: str | None, now: datetime, option: str) -> datetime | None:
    """Parse ``text`` as an instant not after ``now``: a span before ``now``, or a time of day or a date and time on
    this machine's clock.

    Return None if ``text`` is None. Raises BadTime, naming ``option``.
    """
    if text is None:
        return None
    try:
        instant = now - span(text) if SPAN.fullmatch(text) else max(_readings(text, now, until=now))
    except (ValueError, OverflowError):
        expected = "expected 2h (ago), 03:00 or 2026-11-23T03:00, not in the future"
        raise BadTime(f"{text!r} is not a valid time; {expected}", option) from None
    return instant


def future(text: str, now: datetime, option: str) -> datetime:
    """Parse ``text`` as an instant after ``now``, on this machine's clock: the next occurrence of a time of day, or a
    date and time.

    Raises BadTime, naming ``option``.
    """
    try:
        return min(instant for instant in _readings(text, now) if instant > now)
    except (ValueError, OverflowError):
        expected = f"expected 18:00 or 2026-11-23T18:00, after now, {now.astimezone():%Y-%m-%d %H:%M:%S %Z}"
        raise BadTime(f"{text!r} is not a valid time; {expected}", option) from None


def _readings(text: str, now: datetime, *, until: datetime | None = None) -> list[datetime]:
    """Return the possible meanings of ``text`` on this machine's clock around ``now``, but not after ``until``."""
    walls = [datetime.fromisoformat(text)] if not TIME_OF_DAY.fullmatch(text) else []
    if not walls:
        of_day, today = time.fromisoformat(text.zfill(8 if text.count(":") == 2 else 5)), now.astimezone().date()
        walls = [datetime.combine(today + timedelta(days=days), of_day) for days in (-1, 0, 1)]
    instants = [wall.astimezone(UTC) for wall in walls]
    return [instant for instant in instants if until is None or instant <= until]
