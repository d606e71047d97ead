"""Lists the slots of a job, or of one of its keys, in a span of time.

The list has the slots in the ledger. For a job with a declared schedule it also has slots that are not in the ledger.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Literal

from sqlalchemy import Connection

from core.errors import BadTime
from core.jobs.registry import Registry
from core.ledger import history
from core.ledger.models import State
from core.operations.json_shape import Instant, Shape
from core.operations.runs import refuse_unknown
from core.operations.times import EARLIEST, LATEST

MOST_SLOTS = 1000
LONGEST = timedelta(days=366)


class Slot(Shape):
    """A slot and its outcome."""

    slot: Instant
    #: The state of the slot's run. A slot that has no run is ``to come`` or ``not on record``.
    outcome: str
    reason: str | None
    run: int | None
    late_seconds: float | None


class Slots(Shape):
    """The slots of a span, in order."""

    job: str
    key: str
    items: list[Slot]
    #: Whether these are all slots of the span.
    is_complete: bool


def listed(connection: Connection, registry: Registry, job: str, key: str, after: datetime, before: datetime) -> Slots:
    """Return the slots with ``after`` <= slot < ``before``. Raises UnknownJob or BadTime."""
    refuse_unknown(connection, registry, job)
    if after.utcoffset() is None or before.utcoffset() is None:
        raise BadTime("give times with their offset, such as 2026-03-29T02:30:00+00:00", "from")
    if not EARLIEST < after < LATEST or not after < before <= after + LONGEST:
        raise BadTime(f"give a span of up to {LONGEST.days} days, which ends after its start", "to")
    now = history.now(connection)
    recorded = {run.slot: run for run in history.of_slots(connection, job, key, after, before, most=MOST_SLOTS + 1)}
    expected = {} if key else dict.fromkeys(islice(of_schedule(registry, job, after, before), MOST_SLOTS + 1))
    slots = sorted({*recorded, *expected})
    items = [shape(slot, recorded.get(slot), now) for slot in slots[:MOST_SLOTS]]
    return Slots(job=job, key=key, items=items, is_complete=len(slots) <= MOST_SLOTS)


def of_schedule(registry: Registry, job: str, after: datetime, before: datetime) -> Iterator[datetime]:
    """Yield the slots of the job's present schedule."""
    found = registry.jobs.get(job)
    if found is not None and found.schedule is not None:
        # between() excludes its start and includes its end, but this list includes its start and excludes its end.
        yield from found.schedule.between(after - timedelta.resolution, before - timedelta.resolution)


def shape(slot: datetime, run: history.Run | None, now: datetime) -> Slot:
    """Return a slot as JSON."""
    if run is None:
        outcome: Literal["to come", "not on record"] = "to come" if slot > now else "not on record"
        return Slot(slot=slot, outcome=outcome, reason=None, run=None, late_seconds=None)
    started = run.started_at if run.state in {State.RUNNING, State.SUCCEEDED} and run.attempt == 1 else None
    late = (started - slot).total_seconds() if started is not None else None
    return Slot(slot=slot, outcome=run.state, reason=run.reason, run=run.id, late_seconds=late)
