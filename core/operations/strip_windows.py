"""The spans of strips, and the cells in which a schedule has slots. Pure functions of a schedule and a time."""

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import groupby, islice
from typing import Literal
from zoneinfo import ZoneInfo

from core.jobs.schedules import EPOCH, SECOND, Cron, Schedule
from core.ledger.slots import TOLERANCE

SpanName = Literal["24h", "7d", "90d"]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
#: The bins of the span of 24 hours. Slots that are at least ``APART`` apart have cells of their own.
BIN, APART = timedelta(minutes=15), timedelta(minutes=10)
#: The span of 24 hours ends at least this long after now, so that it shows slots to come.
AHEAD = timedelta(minutes=20)
#: The number of next slots that are shown.
NEXT_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time, and the bounds of its bins."""

    span: SpanName
    edges: tuple[datetime, ...]
    now: datetime

    @property
    def after(self) -> datetime:
        """The first instant of the span."""
        return self.edges[0]

    @property
    def before(self) -> datetime:
        """The end of the span, a little later than now."""
        return self.edges[-1]

    @property
    def settled(self) -> datetime:
        """The time up to which the dispatcher has recorded all slots, unless it is away."""
        return self.now - TOLERANCE


def window(span: SpanName, now: datetime, zone: ZoneInfo) -> Window:
    """Return the span that ends soon after ``now``: bins of 15 minutes, of an hour, or of a day in ``zone``."""
    if span == "90d":
        last = now.astimezone(zone).date() + DAY
        days = [last - before * DAY for before in range(90, -1, -1)]
        return Window(span, tuple(datetime(*day.timetuple()[:3], tzinfo=zone).astimezone(UTC) for day in days), now)
    ahead, length, width = (AHEAD, DAY, BIN) if span == "24h" else (timedelta(), 7 * DAY, HOUR)
    end = EPOCH - (EPOCH - now - ahead) // HOUR * HOUR
    return Window(span, tuple(end - length + width * number for number in range(length // width + 1)), now)


def second(instant: datetime) -> int:
    """Return the seconds since the Unix epoch."""
    return (instant - EPOCH) // SECOND


@lru_cache(maxsize=8_000)
def own_cells(schedule: Schedule, after: datetime, before: datetime) -> tuple[int, ...] | None:
    """Return the second of each slot in a span, or None if two slots are less than ``APART`` apart."""
    found: list[int] = []
    for slot in schedule.between(after - timedelta.resolution, before - timedelta.resolution):
        found.append(second(slot))
        if len(found) > 1 and found[-1] - found[-2] < APART.total_seconds():
            return None
    return tuple(found)


def is_exact(schedule: Schedule, at: Window) -> bool:
    """Return whether each slot has a cell of its own."""
    return at.span == "24h" and own_cells(schedule, at.after, at.before) is not None


def unrecorded(schedule: Schedule, at: Window, recorded: Collection[int], since: datetime) -> Collection[int]:
    """Return the cells without slots on record in which the schedule had slots after ``since`` that are due."""
    if is_exact(schedule, at):
        begins, ends = second(max(since, at.after)), second(at.settled)
        return {cell for cell in own_cells(schedule, at.after, at.before) or () if begins < cell <= ends} - set(
            recorded
        )
    return set(bins_with_slots(schedule, at, recorded, max(since, at.after - SECOND), at.settled))


def to_come(schedule: Schedule, at: Window, recorded: Collection[int]) -> Collection[int]:
    """Return the cells without slots on record whose slots are not settled yet. A bin that has begun is left out."""
    if is_exact(schedule, at):
        cells = own_cells(schedule, at.after, at.before) or ()
        return {cell for cell in cells if cell > second(at.settled)} - set(recorded)
    begun = next((edge for edge in at.edges if edge > at.now), at.before)
    return set(bins_with_slots(schedule, at, recorded, begun - SECOND, at.before - SECOND))


def coming(schedule: Schedule, now: datetime) -> list[datetime]:
    """Return the next slots of a schedule. The slots of a cron expression are computed once a minute."""
    if isinstance(schedule, Cron):
        return list(next_slots(schedule, now.replace(second=0, microsecond=0)))
    return list(next_slots.__wrapped__(schedule, now))


@lru_cache(maxsize=4_000)
def next_slots(schedule: Schedule, instant: datetime) -> tuple[datetime, ...]:
    """Return the next slots after an instant."""
    return tuple(islice(schedule.between(instant, datetime.max.replace(tzinfo=UTC)), NEXT_SHOWN))


@lru_cache(maxsize=50_000)
def first_after(schedule: Schedule, instant: datetime) -> datetime:
    """Return the first slot after an instant, which is the beginning of a bin in most cases."""
    return schedule.next_after(instant)


def bins_with_slots(
    schedule: Schedule, at: Window, recorded: Collection[int], after: datetime, until: datetime
) -> Iterator[int]:
    """Yield the bins without slots on record that have a slot with ``after`` < slot <= ``until``.

    Of each bin, at most one slot is computed.
    """
    empty = sorted(set(range(len(at.edges) - 1)) - set(recorded))
    for _, alike in groupby(enumerate(empty), key=lambda each: each[1] - each[0]):
        bins = [number for _, number in alike]
        cursor, end = max(at.edges[bins[0]] - SECOND, after), min(at.edges[bins[-1] + 1] - SECOND, until)
        while cursor < end and (slot := first_after(schedule, cursor)) <= end:
            number = bisect_right(at.edges, slot) - 1
            yield number
            cursor = at.edges[number + 1] - SECOND
