"""Accounts for every slot of every declared schedule: inserts a row that is queued, missed or skipped.

periodiq inserts slots at their time. Half a second later, the dispatcher inserts the slots that periodiq did not
insert. After an outage, the dispatcher applies each job's misfire policy to all slots that came due during the outage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import Connection

from core.dispatcher import sending
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.jobs.schedules import first_after, slots_between
from core.ledger import history, pauses, runs, slots
from core.ledger.carrier import DispatchCarrier
from core.ledger.pauses import Pause
from core.ledger.slots import SlotRow, Watermark
from core.scheduling.misfires import HEAD_START, count_missed, is_late, verdicts

#: The most slots that one pass accounts for. Each job may have an equal share of them, or LEAST_OF_ONE_JOB slots if the
#: share is smaller. So with more than 100 jobs, a pass may account for more slots.
MOST_AT_ONCE = 10_000
LEAST_OF_ONE_JOB = 100

LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class PastPauses:
    """The pauses that one pass needs. They are read when the pass finds a late slot, and again when it finds an older
    late slot.
    """

    connection: Connection
    since: datetime | None = None
    found: list[Pause] = field(default_factory=list)

    def of(self, scopes: Sequence[str], due: list[datetime], now: datetime) -> list[Pause]:
        """Return the pauses of ``scopes`` since the first of the slots ``due``, or an empty list if no slot is late."""
        if not is_late(due, now):
            return []
        if self.since is None or due[0] < self.since:
            self.since, self.found = due[0], pauses.not_over_at(self.connection, due[0])
        return pauses.of_scopes(self.found, scopes)


@dataclass(slots=True)
class Accountant:
    """Accounts for the slots of declared schedules. It keeps a copy of the ledger's watermarks between passes."""

    registry: Registry
    marks: dict[str, Watermark]
    #: For each job, the first slot that is not accounted for. A pass leaves out a job whose first slot is not due yet.
    next_slots: dict[str, datetime] = field(default_factory=dict)
    #: The earliest of ``next_slots``; None if no job has a schedule.
    next_at: datetime | None = field(default=LONG_AGO)

    def is_due(self, now: datetime) -> bool:
        """Return whether there are slots to account for at ``now``."""
        return self.next_at is not None and self.next_at <= now - HEAD_START

    def account(self, connection: Connection, carrier: DispatchCarrier) -> None:
        """Insert a row for each due slot that has none."""
        try:
            self._account(connection, carrier)
        except BaseException:
            self.next_slots.clear()  # some slots may be missing, so the next pass begins at the watermarks
            raise

    def _account(self, connection: Connection, carrier: DispatchCarrier) -> None:
        now = history.now(connection)
        changed: dict[str, Watermark] = {}
        due: list[tuple[Job, SlotRow]] = []
        until, paused = now - HEAD_START, PastPauses(connection)
        jobs = [job for job in self.registry.scheduled() if self.next_slots.get(job.name, until) <= until]
        most = max(MOST_AT_ONCE // max(len(jobs), 1), LEAST_OF_ONE_JOB)
        for job in jobs:
            mark = self._account_for(job, now, paused, due, most)
            if mark is not None:
                changed[job.name] = mark
        for outgoing in slots.insert_many(connection, due, carried=carrier.carries, scopes=self.registry.scopes):
            if carrier.carries:
                sending.send(connection, carrier, outgoing)
            elif outgoing:
                runs.announce(connection)
        slots.account(connection, changed)
        self.marks.update(changed)
        self.next_at = min((self.next_slots.get(job.name, until) for job in self.registry.scheduled()), default=None)

    def _account_for(
        self, job: Job, now: datetime, paused: PastPauses, found: list[tuple[Job, SlotRow]], most: int
    ) -> Watermark | None:
        """Add the due slots of ``job`` to ``found``. Return the job's new watermark, if it changes."""
        assert job.schedule is not None
        spec, until = str(job.schedule), now - HEAD_START
        mark = self.marks.get(job.name)
        if mark is None or mark.spec != spec:
            self.next_slots[job.name] = job.schedule.next_after(now)
            return Watermark(spec, now)
        if mark.accounted_until >= until:
            return None
        first = self.next_slots.get(job.name)
        due = slots_between(job.schedule, mark.accounted_until, until, first=first, most=most)
        rows = verdicts(job, due, now, paused.of(self.registry.scopes[job.name], due, now))
        found += [(job, row) for row in rows]
        count_missed(job, rows)
        reached = due[-1] if len(due) == most else until
        self.next_slots[job.name] = first_after(job.schedule, due[-1] if due else reached)
        return Watermark(spec, reached) if due else None
