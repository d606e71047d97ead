"""The history of a key's schedule: what was in force at any time, and the gaps in which its slots have no runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection, Row, text

from core.jobs.schedules import Shifted, grid

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
    """A time in which one schedule was in force: slots after ``since``, and up to ``until`` if it is over."""

    since: datetime
    until: datetime | None
    spec: str
    phase: int
    stretched: int
    extra_at: datetime | None
    #: Whether it is a time without a schedule, and who has removed it.
    is_removed: bool = False
    by: str | None = None

    @property
    def slots(self) -> Shifted:
        """The slots of the schedule, whether a back-off left them out or not."""
        return grid(self.spec, self.phase)

    def is_left_out(self, slot: datetime) -> bool:
        """Whether a back-off left this slot out."""
        return bool(self.stretched) and grid(self.spec, self.phase, self.stretched).latest_at(slot) != slot

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Its slots with ``after`` < slot <= ``until``."""
        if self.is_removed:
            return
        begins, ends = max(after, self.since), min(until, self.until or until)
        if self.extra_at is not None and begins < self.extra_at <= ends:
            yield self.extra_at
        if begins < ends:
            yield from self.slots.between(begins, ends)


def row(connection: Connection, job: str, key: str) -> Row[Any] | None:
    """The schedule of a key, as it is now; None if it has none."""
    return connection.execute(ROW, {"job": job, "key": key}).one_or_none()


def periods(connection: Connection, job: str, key: str) -> Sequence[Period]:
    """The periods of the key's schedule, in order, as far back as the log goes."""
    entries = list(connection.execute(LOG, {"job": job, "key": key}))
    present = row(connection, job, key)
    if not entries and present is not None and present.since is not None:  # its entries were deleted with old runs
        return [Period(present.since, None, present.spec, present.phase, present.stretched, present.extra_at)]
    ends = [entry.since for entry in entries[1:]]
    return [period(entry, until) for entry, until in zip_longest(entries, ends)]


def period(entry: Row[Any], until: datetime | None) -> Period:
    """The period that an entry of the log began."""
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
    """The one that was in force for a slot at ``instant``."""
    return next((each for each in reversed(found) if each.since < instant), None)


def gaps(connection: Connection, job: str, key: str, slot: datetime) -> Sequence[Row[Any]]:
    """The gaps that a slot is in, those of the key first."""
    return connection.execute(GAPS, {"job": job, "key": key, "slot": slot}).all()


def around(found: Sequence[Period], instant: datetime) -> tuple[datetime | None, datetime | None]:
    """The last slot at or before ``instant``, and the first one after it, of the schedule that was in force then."""
    period = at(found, instant)
    if period is None or period.is_removed:
        return None, None
    before, after = period.slots.latest_at(instant), period.slots.next_after(instant)
    if period.extra_at is not None and period.extra_at > instant:
        after = min(after, period.extra_at)
    return (before if before > period.since else None), after
