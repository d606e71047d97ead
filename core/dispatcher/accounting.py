"""Accounts for every slot of every schedule: queued, or missed with a reason.

periodiq inserts slots at their time. Half a second later this pass inserts those it did not, and after an outage it
applies each job's misfire policy to all that came due meanwhile.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile

from sqlalchemy import Connection, text

from core.dispatcher import sending
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.jobs.schedules import first_after, slots_between
from core.ledger import pauses, runs, slots
from core.ledger.carrier import DispatchCarrier
from core.ledger.models import State
from core.ledger.pauses import Pause
from core.ledger.slots import SlotRow, Watermark
from core.observability import metrics

logger = logging.getLogger(__name__)

#: What periodiq is given to insert a slot before the dispatcher does. With a pass a second, a slot that periodiq did
#: not insert is started within 2 s of its time, the last half second being for the pass and the message.
HEAD_START = timedelta(milliseconds=500)
#: A slot that is later than this was missed, and its job's policy says what becomes of it.
TOLERANCE = timedelta(seconds=30)
#: How many slots of one job are accounted for in one pass.
MOST_AT_ONCE = 10_000

#: Why a late slot that is within its grace is not run, by its job's policy.
REASONS = {"latest": "superseded", "all": "capped", "skip": "policy"}

NOW = text("SELECT clock_timestamp()")
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
        now = connection.execute(NOW).scalar_one()
        changed: dict[str, Watermark] = {}
        due: list[tuple[Job, SlotRow]] = []
        until, paused = now - HEAD_START, PastPauses(connection)
        for job in self.registry.scheduled():
            if self.next_slots.get(job.name, until) <= until:
                mark = self._account_for(job, now, paused, due)
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
        self, job: Job, now: datetime, paused: PastPauses, found: list[tuple[Job, SlotRow]]
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
        due = slots_between(job.schedule, mark.accounted_until, until, first=first, most=MOST_AT_ONCE)
        rows = verdicts(job, due, now, paused.of(self.registry.scopes[job.name], due, now))
        found += [(job, row) for row in rows]
        count_missed(job, rows)
        reached = due[-1] if len(due) == MOST_AT_ONCE else until
        self.next_slots[job.name] = first_after(job.schedule, due[-1] if due else reached)
        return Watermark(spec, reached) if due else None


def is_late(due: list[datetime], now: datetime) -> bool:
    """Whether any of the slots ``due``, in order, is the misfire policy's to decide."""
    return bool(due) and now - due[0] > TOLERANCE


def verdicts(job: Job, due: list[datetime], now: datetime, paused: Sequence[Pause] = ()) -> list[SlotRow]:
    """What is to be recorded for each of the slots ``due``; ``paused`` are the pauses of the job meanwhile."""
    if not is_late(due, now):
        return [SlotRow(slot) for slot in due]
    oldest = oldest_kept(job, due[0], now, paused)
    return [verdict(job, slot, now - slot, paused, is_kept=slot >= oldest) for slot in due]


def oldest_kept(job: Job, first: datetime, now: datetime, paused: Sequence[Pause]) -> datetime:
    """The oldest slot, not before ``first``, that runs however many came due since: by the job's policy and cap."""
    most = job.misfire_cap if job.misfire == "all" else 1
    served = takewhile(lambda slot: slot >= first, newest_first(job, now - HEAD_START, paused))
    kept = list(islice(takewhile(lambda slot: now - slot <= job.misfire_grace, served), most))
    return kept[-1] if kept else now


def newest_first(job: Job, until: datetime, paused: Sequence[Pause]) -> Iterator[datetime]:
    """The slots of a job that are not after ``until`` and came due in none of the pauses."""
    assert job.schedule is not None
    slot = job.schedule.latest_at(until)
    while True:
        pause = pause_at(slot, paused)
        if pause is None:
            yield slot
        slot = job.schedule.latest_at((pause.paused_at if pause else slot) - timedelta.resolution)


def pause_at(slot: datetime, paused: Iterable[Pause]) -> Pause | None:
    """The pause in which a slot came due, if it did in any."""
    return next((pause for pause in paused if pause.covers(slot)), None)


def verdict(job: Job, slot: datetime, lateness: timedelta, paused: Sequence[Pause], *, is_kept: bool) -> SlotRow:
    """Skipped if it was paused, queued if it is in time or to be run late; otherwise missed, and why."""
    if pause_at(slot, paused):
        return SlotRow(slot, State.SKIPPED, "paused")
    if lateness <= TOLERANCE:
        return SlotRow(slot)
    if lateness > job.misfire_grace:
        return SlotRow(slot, State.MISSED, "grace")
    if job.misfire != "skip" and is_kept:
        return SlotRow(slot)
    return SlotRow(slot, State.MISSED, REASONS[job.misfire])


def count_missed(job: Job, rows: list[SlotRow]) -> None:
    """Say how many slots of a job were missed in an outage, and how many of its late slots are left to run."""
    missed = Counter(str(row.reason) for row in rows if row.state == State.MISSED)
    if missed:
        left = sum(row.state == State.QUEUED for row in rows)
        report_missed(job.name, missed, f"misfire={job.misfire}, and {left} are run")


def miss_late(connection: Connection, registry: Registry, held: Mapping[str, datetime] = slots.NONE_HELD) -> None:
    """Apply the misfire policies to slots that are queued and that nobody has started.

    ``held`` says since when jobs are held by a pause, whose slots are skipped.
    """
    ended: dict[str, Counter[str]] = {}
    for job, reason in slots.miss(connection, registry.scheduled(), TOLERANCE.total_seconds(), held):
        ended.setdefault(job, Counter())[reason] += 1
    for job, reasons in ended.items():
        skipped = reasons.pop("paused", 0)
        if skipped:
            logger.info("slots.skipped job=%s slots=%s: it is paused", job, skipped)
        if reasons:
            report_missed(job, reasons, "no worker started them in time")


def report_missed(job: str, reasons: Counter[str], why: str) -> None:
    """Count and log slots that were missed."""
    counts = " ".join(f"{reason}={count}" for reason, count in sorted(reasons.items()))
    metrics.runs_ended(job, {State.MISSED: reasons.total()})
    logger.warning("slots.missed job=%s slots=%s %s: %s", job, reasons.total(), counts, why)
