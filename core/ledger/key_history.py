"""The history of a key's schedule: its schedule at any time, and the gaps in which its slots have no runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection, Row, text

from core.jobs.grid import Shifted, grid, is_readable

ROW = text("""
    SELECT *, nullif(paused_until, 'infinity') AS ends_at, paused_until > clock_timestamp() AS is_paused
    FROM rota_key_schedules WHERE job = :job AND key = :key
""")
LOG = text("""
    SELECT since, action, spec, phase, stretched, extra_at, by FROM rota_key_schedule_log
    WHERE job = :job AND key = :key AND since IS NOT NULL AND action IN ('added', 'changed', 'stretched', 'removed')
    ORDER BY id
""")
GAPS = text("""
    SELECT * FROM rota_gaps
    WHERE job = :job AND (key = :key OR key IS NULL) AND began_at < :slot AND ended_at >= :slot ORDER BY key, id
""")


@dataclass(frozen=True, slots=True)
class Period:
    """A time in which one schedule applied to slots after ``since``, and up to ``until`` if the period is over."""

    since: datetime
    until: datetime | None
    spec: str
    phase: int
    stretched: int
    extra_at: datetime | None
    #: Whether this is a time without a schedule, and the person or job that removed the schedule.
    is_removed: bool = False
    by: str | None = None

    @property
    def is_readable(self) -> bool:
        """Whether this process can read the schedule."""
        return is_readable(self.spec)

    @property
    def slots(self) -> Shifted:
        """The slots of the schedule, including slots that a back-off left out."""
        return grid(self.spec, self.phase)

    def is_left_out(self, slot: datetime) -> bool:
        """Return whether a back-off left this slot out."""
        return bool(self.stretched) and grid(self.spec, self.phase, self.stretched).latest_at(slot) != slot

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Return the slots of the period with ``after`` < slot <= ``until``."""
        if self.is_removed or not self.is_readable:
            return
        begins, ends = max(after, self.since), min(until, self.until or until)
        if self.extra_at is not None and begins < self.extra_at <= ends:
            yield self.extra_at
        if begins < ends:
            yield from self.slots.between(begins, ends)


def row(connection: Connection, job: str, key: str) -> Row[Any] | None:
    """Return the present schedule of a key, or None if the key has none."""
    return connection.execute(ROW, {"job": job, "key": key}).one_or_none()


def periods(connection: Connection, job: str, key: str) -> Sequence[Period]:
    """Return the periods of the key's schedule, in order, as far back as the log goes."""
    entries = list(connection.execute(LOG, {"job": job, "key": key}))
    present = row(connection, job, key)
    if not entries and present is not None and present.since is not None:  # its entries were deleted with old runs
        return [Period(present.since, None, present.spec, present.phase, present.stretched, present.extra_at)]
    ends = [entry.since for entry in entries[1:]]
    return [period(entry, until) for entry, until in zip_longest(entries, ends)]


def period(entry: Row[Any], until: datetime | None) -> Period:
    """Return the period that an entry of the log began."""
    return Period(
        entry.since,
        until,
        entry.spec,
        entry.phase,
        entry.stretched,
        entry.extra_at,
        is_removed=entry.action == "removed",
        by=entry.by,
    )


def at(found: Sequence[Period], instant: datetime) -> Period | None:
    """Return the period whose schedule applied to a slot at ``instant``."""
    return next((each for each in reversed(found) if each.since < instant), None)


def gaps(connection: Connection, job: str, key: str, slot: datetime) -> Sequence[Row[Any]]:
    """Return the gaps that a slot is in. Gaps of the key come before gaps of all keys."""
    return connection.execute(GAPS, {"job": job, "key": key, "slot": slot}).all()


def around(found: Sequence[Period], instant: datetime) -> tuple[datetime | None, datetime | None]:
    """Return the last slot not after ``instant`` and the first slot after it, by the schedule that applied then."""
    period = at(found, instant)
    if period is None or period.is_removed:
        return None, None
    before, after = period.slots.latest_at(instant), period.slots.next_after(instant)
    if period.extra_at is not None and period.extra_at > instant:
        after = min(after, period.extra_at)
    return (before if before > period.since else None), after
