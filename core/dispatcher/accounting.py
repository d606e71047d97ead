"""Accounts for every slot of every schedule: queued, or missed with a reason.

periodiq inserts slots at their time. Half a second later this pass inserts those it did not, and after an outage it
applies each job's misfire policy to all that came due meanwhile.
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

#: How many slots are accounted for in one pass, and how many of one job at least.
MOST_AT_ONCE = 10_000
LEAST_OF_ONE_JOB = 100

LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class PastPauses:
    """The pauses of one pass, asked for if a slot is late, and again only if one is later still."""

    connection: Connection
    since: datetime | None = None
    found: list[Pause] = field(default_factory=list)

    def of(self, scopes: Sequence[str], due: list[datetime], now: datetime) -> list[Pause]:
        """Those of ``scopes`` since the first of the slots ``due``; none matters where all are in time."""
        if not is_late(due, now):
            return []
        if self.since is None or due[0] < self.since:
            self.since, self.found = due[0], pauses.not_over_at(self.connection, due[0])
        return pauses.of_scopes(self.found, scopes)


@dataclass(slots=True)
class Accountant:
    """What the active dispatcher remembers between passes; the ledger has it too."""

    registry: Registry
    marks: dict[str, Watermark]
    #: The first slot of each job that is not accounted for, so that a pass need not compute what is not due.
    next_slots: dict[str, datetime] = field(default_factory=dict)
    #: The first of them all; None: there is no schedule.
    next_at: datetime | None = field(default=LONG_AGO)

    def is_due(self, now: datetime) -> bool:
        """Whether there are slots to account for at ``now``."""
        return self.next_at is not None and self.next_at <= now - HEAD_START

    def account(self, connection: Connection, carrier: DispatchCarrier) -> None:
        """Insert the slots that are due and that nobody has inserted."""
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
        """Add to what was ``found`` due the slots of ``job``; return its new watermark, if it moves."""
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
