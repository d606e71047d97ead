"""Describes a job's last successful slot, and the states of its later slots, in a sentence for an operator."""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from itertools import islice
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from core.jobs.job import Job
from core.jobs.registry import Registry
from core.ledger import history, overdue, pauses
from core.ledger.overdue import MOST_COUNTED, WRONG_FROM, Standing
from core.ledger.pauses import Pause
from core.ledger.slots import TOLERANCE
from core.operations.json_shape import Instant, Shape

#: The words for the states of slots that count as due.
CAME_DUE = {
    "dead": "dead",
    "missed": "missed",
    "orphaned": "orphaned",
    "queued": "not started",
    "retrying": "being retried",
    "running": "running",
}


class Overdue(Shape):
    """A job whose slots are overdue, and what became of them in words."""

    job: str
    succeeded_slot: Instant | None
    said: str


def late(connection: Connection, registry: Registry, active: Sequence[Pause]) -> Iterator[Overdue]:
    """Yield the jobs whose slots are overdue, except those that one of the ``active`` pauses covers.

    This reads only the ledger.
    """
    scheduled = {job.name: job for job in registry.scheduled()}
    now, held = history.now(connection), pauses.held(active, registry.scopes)
    for found in overdue.look(connection, scheduled.values()):
        job = scheduled[found.job]
        missing = unrecorded(connection, job, registry.scopes[found.job], found, now)
        if found.overdue + missing >= WRONG_FROM and found.job not in held:
            said = in_words(found, missing, job)
            yield Overdue(job=found.job, succeeded_slot=found.succeeded_slot, said=said)


def unrecorded(connection: Connection, job: Job, scopes: Collection[str], found: Standing, now: datetime) -> int:
    """Return how many due slots are not in the ledger.

    For example, no slot is inserted while all workers are down.
    """
    if job.schedule is None or found.spec != str(job.schedule):  # no dispatcher has seen this schedule
        return 0
    since = max(found.accounted_until, found.recorded_until or found.accounted_until)
    if since >= now - TOLERANCE:
        return 0
    paused = pauses.of_scopes(pauses.not_over_at(connection, since), scopes)
    due = islice(job.schedule.between(since, now - TOLERANCE), MOST_COUNTED)
    return sum(not any(pause.covers(slot) for pause in paused) for slot in due)


def in_words(found: Standing, unrecorded: int, job: Job) -> str:
    """Return a text such as ``no successful slot since …; 3 slots came due: 1 dead, 2 missed; besides, 4 were skipped
    in a pause``.
    """
    counts = {word: getattr(found, name) for name, word in CAME_DUE.items()} | {"not on record": unrecorded}
    total = sum(counts.values())
    became = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    skipped = [
        f"{count} {why}"
        for count, why in ((found.overlapped, "since another run was running"), (found.paused, "in a pause"))
        if count
    ]
    besides = f"; besides, {' and '.join(skipped)} were skipped" if skipped else ""
    most = " or more" if total >= MOST_COUNTED else ""
    return f"no successful slot {since(found, job)}; {total}{most} slots came due: {became or 'none'}{besides}"


def since(found: Standing, job: Job) -> str:
    """Return ``since that of TIME``, where TIME is the last successful slot, or ``on record`` if no slot succeeded."""
    if found.succeeded_slot is None:
        return "on record"
    zone = ZoneInfo((job.schedule.timezone if job.schedule else None) or "UTC")
    return f"since that of {found.succeeded_slot.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"
