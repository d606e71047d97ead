"""Schedules and their slots: pure functions of a schedule and an instant.

A schedule is an endless, strictly increasing series of instants, its slots. They depend only on the schedule's
declaration. So every host computes the same slots, and a slot can identify a run. The slots of ``every`` are the
multiples of its interval since the Unix epoch. The slots of ``cron`` are wall-clock times in its time zone. When clocks
change, the rules are Debian's:

- A job at fixed times (neither minute nor hour begins with ``*``) runs once for each date and time of its expression.
  If the clocks skip one or more of these times, the job runs once, right after the gap. If a time occurs twice, the job
  runs at its first occurrence only.
- A job with a wildcard follows the wall clock: it runs in both passes of a repeated hour, and never in a skipped hour.

``cron_dialect.py`` defines the expressions. CronSim computes their wall-clock times without a zone. This module applies
the zone, since CronSim 2.8 has errors with zones: it returns past slots when it starts inside a repeated hour, loses
slots where clocks change by half an hour, and runs wildcards at a skipped midnight.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache, lru_cache
from heapq import merge
from itertools import islice, takewhile
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from core.errors import DeclarationError, suggestion
from core.jobs import cron_dialect
from core.jobs.cron_dialect import EXPECTED_FIELDS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)

#: The shortest interval of ``every``.
SHORTEST_INTERVAL = SECOND
#: The longest interval of ``every``, a leap year. For longer intervals, use ``cron``.
LONGEST_INTERVAL = timedelta(days=366)

#: A cron expression must match at a wall-clock time between this time and ``CHECKED_UNTIL``. The rarest date, a given
#: weekday on 29 February, comes at most 40 years after the previous one. CronSim itself searches for 50 years.
CHECKED_FROM = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
CHECKED_UNTIL = CHECKED_FROM.replace(year=2076)
CHECKED_FROM_UTC = CHECKED_FROM.replace(tzinfo=UTC)

_SECONDS_PER = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
EVERY_TEXT = re.compile(r"every (\d+)([dhms])")
_UNITS = (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("m", timedelta(minutes=1)), ("s", SECOND))


def every(*, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> "Every":
    """Return a schedule with a slot at each multiple of the interval since the Unix epoch: ``every(hours=1)`` is due on
    the hour, UTC.

    The parts add up to a whole number of seconds from 1 s to 366 days. Raises DeclarationError otherwise.
    """
    parts = {"seconds": seconds, "minutes": minutes, "hours": hours, "days": days}
    total = sum((_seconds_in(name, value) for name, value in parts.items()), Fraction())
    if total.denominator != 1 or not _is_in_bounds(total):
        given = ", ".join(f"{name}={value!r}" for name, value in parts.items() if value)
        raise DeclarationError(f"bad interval in every({given}); expected whole seconds from 1 s to 366 days")
    return Every(timedelta(seconds=int(total)))


def cron(expression: str, *, tz: str = "UTC") -> "Cron":
    """Return a schedule with a slot whenever the wall clock in ``tz`` matches ``expression``: five fields, or a name
    such as ``@daily``.

    Day of month and day of week must both match if either begins with ``*``. Otherwise it is enough that one of them
    matches. When clocks change, Debian's rules apply (see the module's docstring). Raises DeclarationError for an
    expression that is malformed or never matches, and for an unknown time zone.
    """
    return Cron(expression, tz)


class Schedule(ABC):
    """A series of slots. Methods take aware instants in any zone and return UTC.

    The methods raise ValueError for a naive datetime, and OverflowError for a slot outside the years 1 to 9999.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def timezone(self) -> str | None:
        """The key of the schedule's time zone."""

    @abstractmethod
    def latest_at(self, instant: datetime) -> datetime:
        """Return the newest slot not after ``instant``, even if it is years old."""

    @abstractmethod
    def _slots_after(self, instant: datetime) -> Iterator[datetime]:
        """Yield all slots strictly after ``instant``, which is in UTC, ascending and without end."""

    def next_after(self, instant: datetime) -> datetime:
        """Return the first slot strictly after ``instant``."""
        return next(self._slots_after(_utc(instant)))

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the slots with ``after`` < slot <= ``until``, in ascending order.

        Each slot is computed when it is needed.
        """
        end = _utc(until)
        return takewhile(lambda slot: slot <= end, self._slots_after(_utc(after)))


@dataclass(frozen=True, slots=True)
class Every(Schedule):
    """A schedule whose slots are the multiples of ``interval`` since the Unix epoch. ``every`` makes it."""

    interval: timedelta

    def __post_init__(self) -> None:
        if self.interval % SECOND or not SHORTEST_INTERVAL <= self.interval <= LONGEST_INTERVAL:
            raise DeclarationError(f"bad interval {self.interval!r}; expected whole seconds from 1 s to 366 days")

    def __str__(self) -> str:
        name, unit = next((name, unit) for name, unit in _UNITS if not self.interval % unit)
        return f"every {self.interval // unit}{name}"

    @property
    def timezone(self) -> str:
        """The key of the time zone, always UTC: the interval is counted from the Unix epoch."""
        return "UTC"

    def latest_at(self, instant: datetime) -> datetime:
        """Return the newest slot not after ``instant``."""
        return EPOCH + (_utc(instant) - EPOCH) // self.interval * self.interval

    def _slots_after(self, instant: datetime) -> Iterator[datetime]:
        slot = self.latest_at(instant)
        while True:
            slot += self.interval
            yield slot


@dataclass(frozen=True, slots=True)
class Cron(Schedule):
    """A schedule whose slots are the wall-clock times of ``expression`` in the zone ``tz``. ``cron`` makes it."""

    expression: str
    tz: str = "UTC"
    _fields: str = field(init=False, repr=False, compare=False)
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_zone", _zone(self.tz))
        object.__setattr__(self, "_fields", _fields(self.expression))
        object.__setattr__(self, "expression", " ".join(self.expression.split()))
        if not self._ever_comes():
            at_fault = f"cron expression {self.expression!r} never comes in {self.tz!r}"
            raise DeclarationError(f"{at_fault}; expected {EXPECTED_FIELDS}")

    def __str__(self) -> str:
        return f"{self.expression} {self.tz}"

    @property
    def timezone(self) -> str:
        """The key of the time zone in which the expression is read."""
        return self.tz

    def latest_at(self, instant: datetime) -> datetime:
        """Return the newest slot not after ``instant``, even if it is years old."""
        at = _utc(instant)
        wall, repeated = self._wall_at(at)
        return max(
            next(slot for slot in self._slots_of(self._walls_before(wall + repeated), fold) if slot <= at)
            for fold in self._folds
        )

    def _slots_after(self, instant: datetime) -> Iterator[datetime]:
        wall, repeated = self._wall_at(instant)
        streams = [self._slots_of(CronSim(self._fields, wall - repeated), fold) for fold in self._folds]
        newest = instant
        for slot in merge(*streams):
            if slot > newest:
                yield slot
                newest = slot

    def _wall_at(self, instant: datetime) -> tuple[datetime, timedelta]:
        """Return the naive wall-clock time at ``instant`` and, if that time occurs twice, how far apart the occurrences
        are.

        In a repeated hour, a later instant may have an earlier wall-clock time, but it is earlier by less than the
        second value. The second value is zero if the time occurs once.
        """
        local = instant.astimezone(self._zone)
        first, second = (local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
        return local.replace(tzinfo=None, fold=0), second - first

    def _walls_before(self, wall: datetime) -> CronSim:
        """Yield the matching wall-clock times not after ``wall``, the newest first."""
        return CronSim(self._fields, wall.replace(microsecond=0) + SECOND, reverse=True)

    def _slots_of(self, walls: Iterable[datetime], fold: int) -> Iterator[datetime]:
        """Yield the instants of ``walls``, in order. ``fold`` chooses the occurrence of a time that occurs twice."""
        slots = (self._slot_of(wall, fold) for wall in walls)
        return (slot for slot in slots if slot is not None)

    def _slot_of(self, wall: datetime, fold: int) -> datetime | None:
        slot = wall.replace(tzinfo=self._zone, fold=fold).astimezone(UTC)
        if slot.astimezone(self._zone).replace(tzinfo=None) == wall:
            return slot
        return None if self._has_wildcard else _end_of_gap(wall, self._zone)

    def _ever_comes(self) -> bool:
        walls = takewhile(lambda wall: wall < CHECKED_UNTIL, CronSim(self._fields, CHECKED_FROM))
        return any(self._slots_of(walls, fold=0))

    @property
    def _has_wildcard(self) -> bool:
        minute, hour = self._fields.split()[:2]
        return minute.startswith("*") or hour.startswith("*")

    @property
    def _folds(self) -> tuple[int, ...]:
        return (0, 1) if self._has_wildcard else (0,)


@lru_cache(maxsize=10_000)
def parse(spec: str) -> Every | Cron:
    """Return the schedule whose ``str`` is ``spec``. Raises DeclarationError or ValueError."""
    if found := EVERY_TEXT.fullmatch(spec):
        return Every(int(found[1]) * dict(_UNITS)[found[2]])
    expression, _, tz = spec.rpartition(" ")
    return Cron(expression, tz)


@lru_cache(maxsize=10_000)
def first_after(schedule: Schedule, instant: datetime) -> datetime:
    """Return ``schedule.next_after(instant)``, computed once for the many jobs that have the same schedule."""
    return schedule.next_after(instant)


def slots_between(
    schedule: Schedule, after: datetime, until: datetime, *, first: datetime | None, most: int | None = None
) -> list[datetime]:
    """Return the slots with ``after`` < slot <= ``until``, at most ``most`` of them.

    ``first`` is the first slot after ``after``, if the caller knows it. If it is less than a second before ``until``,
    it is the only slot, since slots are whole seconds. This makes the usual case fast.
    """
    if first is not None and after < first <= until < first + SECOND:
        return [first]
    return list(islice(schedule.between(after, until), most)) if after < until else []


def _utc(instant: datetime) -> datetime:
    if instant.utcoffset() is None:
        raise ValueError(f"naive datetime {instant!r}; expected one with a time zone")
    return instant.astimezone(UTC)


def _seconds_in(name: str, value: float) -> Fraction:
    """Return the exact number of seconds as written: 1.1 minutes are 66 s, which binary floating point would miss."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DeclarationError(f"bad {name}={value!r} in every(); expected an int or a float")
    try:
        amount = Fraction(value) if isinstance(value, int) else Fraction(str(value))
    except ValueError:
        raise DeclarationError(f"bad {name}={value!r} in every(); expected a finite number") from None
    if amount < 0:
        raise DeclarationError(f"bad {name}={value!r} in every(); expected no less than 0")
    return amount * _SECONDS_PER[name]


def _is_in_bounds(total: Fraction) -> bool:
    return SHORTEST_INTERVAL.total_seconds() <= total <= LONGEST_INTERVAL.total_seconds()


def _fields(expression: str) -> str:
    """Return the five fields of ``expression``, checked, as CronSim reads them."""
    fields = cron_dialect.listed(expression)
    try:
        CronSim(fields, CHECKED_FROM)
    except CronSimError as error:
        at_fault = f"cron expression {expression!r} has a day of month that none of its months has"
        raise DeclarationError(f"{at_fault}; expected {EXPECTED_FIELDS}") from error
    return fields


def _zone(key: str) -> ZoneInfo:
    # ZoneInfo would open a key as a path, so it is given listed names only.
    if not isinstance(key, str) or key not in _zone_names():
        hint = suggestion(key, _zone_names()) if isinstance(key, str) else ""
        raise DeclarationError(f"unknown time zone {key!r}; expected a name such as 'Europe/London'{hint}")
    return ZoneInfo(key)


@cache
def _zone_names() -> frozenset[str]:
    # "localtime" is a different zone on each host.
    return frozenset(available_timezones()) - {"localtime"}


def _end_of_gap(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the instant, to the second, at which the clocks of ``zone`` skip ``wall``. A binary search finds the
    instant.
    """
    before, after = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (1, 0))
    offset = before.astimezone(zone).utcoffset()
    while after - before > SECOND:
        middle = before + (after - before) // SECOND // 2 * SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after
