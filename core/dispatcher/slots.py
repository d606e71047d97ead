"""Accounts for every slot of every schedule: queued, or missed with a reason.

periodiq inserts slots at their time. Half a second later this pass inserts those it did not, and after an outage it
applies each job's misfire policy to all that came due meanwhile.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from core import metrics
from core.broker import RedisCarrier
from core.dispatcher import relay
from core.jobs import Job
from core.ledger import slots
from core.ledger.models import State
from core.ledger.slots import SlotRow, Watermark
from core.registry import Registry
from core.schedules import first_after, slots_between

logger = logging.getLogger(__name__)

#: What periodiq is given to insert a slot before the dispatcher does. With a pass a second, a slot that periodiq did
#: not insert is started within 2 s of its time, the last half second being for the pass and the message.
HEAD_START = timedelta(milliseconds=500)
#: A slot that is later than this was missed, and its job's policy says what becomes of it.
TOLERANCE = timedelta(seconds=30)
#: How many slots of one job are accounted for in one pass.
MOST_AT_ONCE = 10_000

NOW = text("SELECT clock_timestamp()")


@dataclass(slots=True)
class Accountant:
    """What the active dispatcher remembers between passes; the ledger has it too."""

    registry: Registry
    marks: dict[str, Watermark]
    #: The first slot of each job that is not accounted for, so that a pass need not compute what is not due.
    next_slots: dict[str, datetime] = field(default_factory=dict)

    def account(self, connection: Connection, carrier: RedisCarrier) -> None:
        """Insert the slots that are due and that nobody has inserted."""
        now = connection.execute(NOW).scalar_one()
        changed: dict[str, Watermark] = {}
        due: list[tuple[Job, SlotRow]] = []
        for job in self.registry.scheduled():
            mark = self._account_for(job, now, due)
            if mark is not None:
                changed[job.name] = mark
        for parcels in slots.insert_many(connection, due, carried=True):
            relay.send(connection, carrier, parcels)
        slots.account(connection, changed)
        self.marks.update(changed)

    def _account_for(self, job: Job, now: datetime, found: list[tuple[Job, SlotRow]]) -> Watermark | None:
        """Add to what was ``found`` due the slots of ``job``; return its new watermark, if it moves."""
        assert job.schedule is not None
        spec, until = str(job.schedule), now - HEAD_START
        mark = self.marks.get(job.name)
        if mark is None or mark.spec != spec:
            self.next_slots[job.name] = job.schedule.next_after(now)
            return Watermark(spec, now)
        if self.next_slots.get(job.name, until) > until or mark.accounted_until >= until:
            return None
        first = self.next_slots.get(job.name)
        due = slots_between(job.schedule, mark.accounted_until, until, first=first, most=MOST_AT_ONCE)
        rows = verdicts(job, due, now)
        found += [(job, row) for row in rows]
        count_missed(job, rows)
        reached = due[-1] if len(due) == MOST_AT_ONCE else until
        self.next_slots[job.name] = first_after(job.schedule, due[-1] if due else reached)
        return Watermark(spec, reached) if due else None


def verdicts(job: Job, due: list[datetime], now: datetime) -> list[SlotRow]:
    """What is to be recorded for each of the slots ``due``."""
    assert job.schedule is not None
    if not due or now - due[0] <= TOLERANCE:
        return [SlotRow(slot) for slot in due]
    newest = job.schedule.latest_at(now - HEAD_START)
    return [verdict(job, slot, now - slot, is_newest=slot == newest) for slot in due]


def verdict(job: Job, slot: datetime, lateness: timedelta, *, is_newest: bool) -> SlotRow:
    """Queued if it is in time or its job's policy has it run late; otherwise missed, and why."""
    if lateness <= TOLERANCE:
        return SlotRow(slot)
    if lateness > job.misfire_grace:
        return SlotRow(slot, State.MISSED, "grace")
    if job.misfire == "all" or (job.misfire == "latest" and is_newest):
        return SlotRow(slot)
    return SlotRow(slot, State.MISSED, "policy" if job.misfire == "skip" else "superseded")


def count_missed(job: Job, rows: list[SlotRow]) -> None:
    """Say how many slots of a job were missed in an outage."""
    missed = sum(row.state == State.MISSED for row in rows)
    for _ in range(missed):
        metrics.run_ended(job.name, State.MISSED)
    if missed:
        logger.warning("slots.missed job=%s slots=%s misfire=%s", job.name, missed, job.misfire)


def miss_late(connection: Connection, registry: Registry) -> None:
    """Apply the misfire policies to slots that are queued and that nobody has started."""
    missed = Counter(slots.miss(connection, registry.scheduled(), TOLERANCE.total_seconds()))
    for job, count in missed.items():
        for _ in range(count):
            metrics.run_ended(job, State.MISSED)
        logger.warning("slots.missed job=%s slots=%s: no worker started them in time", job, count)
