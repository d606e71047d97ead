"""The plan of slots: the windows of time in which a job's slots must be accounted for, and which slots are late.

The plan is the same for declared schedules, whose slots are computed one by one, and for schedules made at run time,
whose slots PostgreSQL computes for all keys at once. In both cases a job has one watermark, up to which every slot has
its outcome. The watermark only moves forward, so no slot is inserted twice, or after its row was deleted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from core.jobs.job import Job
from core.ledger.pauses import Pause
from core.ledger.slots import TOLERANCE


@dataclass(frozen=True, slots=True)
class Window:
    """A time whose slots ``after`` < slot <= ``until`` are either all in a pause, or all in no pause."""

    after: datetime
    until: datetime
    is_paused: bool = False


def late_until(now: datetime) -> datetime:
    """Return the newest time at which a slot that is not started at ``now`` is late."""
    return now - TOLERANCE


def is_late(slot: datetime, now: datetime) -> bool:
    """Return whether the misfire policy must decide about a slot."""
    return now - slot > TOLERANCE


def is_in_grace(job: Job, slot: datetime, now: datetime) -> bool:
    """Return whether a slot may still run by the grace of its job."""
    return now - slot <= job.misfire_grace


def windows(after: datetime, until: datetime, paused: Iterable[Pause]) -> list[Window]:
    """Return the windows between ``after`` and ``until``: the windows within pauses, and the windows between pauses.

    A pause that has not ended by ``until`` is left out, with all times after its start. Its slots are accounted for in
    one step when it ends.
    """
    found: list[Window] = []
    for start, end in merged(pause for pause in paused if pause.paused_at <= until):
        begins = max(after, start - datetime.resolution)
        if begins > after:
            found.append(Window(after, begins))
        if end is None or end > until:
            return found
        after = max(begins, end - datetime.resolution)
        if after > begins:
            found.append(Window(begins, after, is_paused=True))
    return [*found, Window(after, until)] if after < until else found


def merged(paused: Iterable[Pause]) -> Sequence[tuple[datetime, datetime | None]]:
    """Return the times that pauses cover, in order and without overlaps. The last time may have no end."""
    found: list[tuple[datetime, datetime | None]] = []
    for pause in sorted(paused, key=lambda pause: pause.paused_at):
        if found and (found[-1][1] is None or pause.paused_at <= found[-1][1]):
            start, end = found[-1]
            found[-1] = (start, None if end is None or pause.until is None else max(end, pause.until))
        else:
            found.append((pause.paused_at, pause.until))
    return found
