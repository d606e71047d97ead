"""The slots of a schedule made at run time. Each slot is later by the *phase* of its key. While the key backs off, only
some of the slots come due.

A *stretch* of n doubles the time between two slots n times. Of an interval, every 2^n-th slot comes due. The slots of a
cron expression have no number. So time is divided into periods, counted from the Unix epoch, each 2^n times as long as
the usual time between two slots, and the first slot in each period comes due. In both cases, the slot alone determines
whether it comes due. So no row changes when a slot comes due, and `rota why` can judge any slot.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise
from statistics import median_low

from core.errors import DeclarationError
from core.jobs.schedules import CHECKED_FROM_UTC, EPOCH, LONGEST_INTERVAL, Cron, Every, Schedule, parse

#: The usual time between two slots of a cron expression is computed from this many slots.
SLOTS_CHECKED = 200


@dataclass(frozen=True, slots=True)
class Shifted(Schedule):
    """A schedule whose slots are those of another schedule, each later by ``shift``."""

    base: Schedule
    shift: timedelta

    def __str__(self) -> str:
        return f"{self.base} + {int(self.shift.total_seconds())}s"

    @property
    def timezone(self) -> str | None:
        """The time zone of the other schedule."""
        return self.base.timezone

    def latest_at(self, instant: datetime) -> datetime:
        """Return the newest slot not after ``instant``."""
        return self.base.latest_at(instant - self.shift) + self.shift

    def _slots_after(self, instant: datetime) -> Iterator[datetime]:
        return (slot + self.shift for slot in self.base._slots_after(instant - self.shift))


@dataclass(frozen=True, slots=True)
class Thinned(Schedule):
    """A schedule that has only the first slot of another schedule in each period of ``length``."""

    base: Schedule
    length: timedelta

    def __str__(self) -> str:
        return str(self.base)

    @property
    def timezone(self) -> str | None:
        """The time zone of the other schedule."""
        return self.base.timezone

    def latest_at(self, instant: datetime) -> datetime:
        """Return the newest slot not after ``instant``."""
        period = self._period(self.base.latest_at(instant))
        return self.base.next_after(EPOCH + period * self.length - datetime.resolution)

    def _slots_after(self, instant: datetime) -> Iterator[datetime]:
        before = self._period(self.base.latest_at(instant))
        for slot in self.base._slots_after(instant):
            period = self._period(slot)
            if period != before:
                yield slot
            before = period

    def _period(self, slot: datetime) -> int:
        return (slot - EPOCH) // self.length


def is_readable(spec: str) -> bool:
    """Return whether this process can read the text of a schedule. It cannot if its host lacks the time zone."""
    try:
        parse(spec)
    except (DeclarationError, ValueError):
        return False
    return True


def grid(spec: str, phase: int, stretch: int = 0) -> Shifted:
    """Return the slots of a schedule made at run time, with this phase, in seconds, and this stretch."""
    base = parse(spec)
    return Shifted(stretched(base, stretch) if stretch else base, timedelta(seconds=phase))


def stretched(base: Every | Cron, stretch: int) -> Schedule:
    """Return a schedule that has only those slots of ``base`` that come due while its key backs off with
    ``stretch``.
    """
    length = min(step(base) << stretch, int(LONGEST_INTERVAL.total_seconds()))
    seconds = timedelta(seconds=length)
    return Every(seconds) if isinstance(base, Every) else Thinned(base, seconds)


def longest_stretch(schedule: Every | Cron, longest: timedelta) -> int:
    """Return how many times the time between two slots can be doubled without being longer than ``longest``."""
    return max((int(longest.total_seconds()) // step(schedule)).bit_length() - 1, 0)


def stretch_of(before: datetime, slot: datetime, step_seconds: int) -> int:
    """Return the largest stretch with which a slot of a cron expression comes due. ``before`` is the slot before this
    slot.
    """
    first, second = (int((each - EPOCH).total_seconds()) // step_seconds for each in (before, slot))
    return max((first ^ second).bit_length() - 1, 0)


@lru_cache(maxsize=10_000)
def step(schedule: Every | Cron) -> int:
    """Return the usual time between two slots, in seconds. For a cron expression, this is a median."""
    if isinstance(schedule, Every):
        return int(schedule.interval.total_seconds())
    return int(median_low([each.total_seconds() for each in distances(schedule)] or [LONGEST_INTERVAL.total_seconds()]))


def distances(schedule: Schedule) -> list[timedelta]:
    """Return the times between successive slots of a schedule, for its first slots."""
    slots = islice(schedule.between(CHECKED_FROM_UTC, CHECKED_FROM_UTC + LONGEST_INTERVAL), SLOTS_CHECKED)
    return [after - before for before, after in pairwise(slots)]
