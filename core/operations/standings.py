"""How a job stands, in a sentence for an operator: its last success, and what became of the slots since."""

from collections.abc import Collection
from datetime import datetime
from itertools import islice
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from core.jobs.job import Job
from core.ledger import pauses
from core.ledger.overdue import MOST_COUNTED, Standing
from core.ledger.slots import TOLERANCE

#: What became of slots, as it is said; these count as having come due.
CAME_DUE = {
    "dead": "dead",
    "missed": "missed",
    "orphaned": "orphaned",
    "queued": "not started",
    "retrying": "being retried",
    "running": "at work",
}


def unrecorded(connection: Connection, job: Job, scopes: Collection[str], found: Standing, now: datetime) -> int:
    """How many slots have come due that nobody has put into the ledger, as when all of the fleet is down."""
    if job.schedule is None or found.spec != str(job.schedule):  # its slots count from when the new one is first seen
        return 0
    since = max(found.accounted_until, found.recorded_until or found.accounted_until)
    if since >= now - TOLERANCE:
        return 0
    paused = pauses.of_scopes(pauses.not_over_at(connection, since), scopes)
    due = islice(job.schedule.between(since, now - TOLERANCE), MOST_COUNTED)
    return sum(not any(pause.covers(slot) for pause in paused) for slot in due)


def in_words(found: Standing, unrecorded: int, job: Job) -> str:
    """``no successful slot since …; 3 slots came due: 1 dead, 2 missed; besides, 4 were skipped in a pause``."""
    counts = {word: getattr(found, name) for name, word in CAME_DUE.items()} | {"not on record": unrecorded}
    total = sum(counts.values())
    became = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    skipped = [
        f"{count} {why}"
        for count, why in ((found.overlapped, "since another run was at work"), (found.paused, "in a pause"))
        if count
    ]
    besides = f"; besides, {' and '.join(skipped)} were skipped" if skipped else ""
    most = " or more" if total >= MOST_COUNTED else ""
    return f"no successful slot {since(found, job)}; {total}{most} slots came due: {became or 'none'}{besides}"


def since(found: Standing, job: Job) -> str:
    """Since when, on the clock of the job's zone."""
    if found.succeeded_slot is None:
        return "on record"
    zone = ZoneInfo((job.schedule.timezone if job.schedule else None) or "UTC")
    return f"since that of {found.succeeded_slot.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"
