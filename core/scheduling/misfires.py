"""Applies each job's misfire policy to slots that were not started in time."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice, takewhile

from sqlalchemy import Connection

from core.jobs.job import Job
from core.jobs.registry import Registry
from core.ledger import slots
from core.ledger.models import State
from core.ledger.pauses import Pause
from core.ledger.slots import TOLERANCE, SlotRow
from core.observability import metrics
from core.observability.events import SlotMissed, SlotSkipped, emit
from core.scheduling import plan

#: The dispatcher waits this long for periodiq to insert a slot. With one pass a second, a slot that periodiq did not
#: insert starts within 2 s of its time: 0.5 s for this wait, 1 s to the next pass, 0.5 s for the pass and the message.
HEAD_START = timedelta(milliseconds=500)
#: For each policy, the reason why a late slot that is within its grace is not run.
REASONS = {"latest": "superseded", "all": "capped", "skip": "policy"}


def is_late(due: list[datetime], now: datetime) -> bool:
    """Return whether the misfire policy must decide about any of the slots ``due``, which are in order."""
    return bool(due) and plan.is_late(due[0], now)


def verdicts(job: Job, due: list[datetime], now: datetime, paused: Sequence[Pause] = ()) -> list[SlotRow]:
    """Return the row to record for each of the slots ``due``. ``paused`` are the job's pauses in that time."""
    if not is_late(due, now):
        return [SlotRow(slot) for slot in due]
    oldest = oldest_kept(job, due[0], now, paused)
    return [verdict(job, slot, now, paused, is_kept=slot >= oldest) for slot in due]


def oldest_kept(job: Job, first: datetime, now: datetime, paused: Sequence[Pause]) -> datetime:
    """Return the oldest slot, not before ``first``, that the job's policy, grace and cap still allow to run."""
    most = job.misfire_cap if job.misfire == "all" else 1
    served = takewhile(lambda slot: slot >= first, newest_first(job, now - HEAD_START, paused))
    kept = list(islice(takewhile(lambda slot: plan.is_in_grace(job, slot, now), served), most))
    return kept[-1] if kept else now


def newest_first(job: Job, until: datetime, paused: Sequence[Pause]) -> Iterator[datetime]:
    """Yield the slots of a job up to ``until``, the newest first, without slots that came due in a pause."""
    assert job.schedule is not None
    slot = job.schedule.latest_at(until)
    while True:
        pause = pause_at(slot, paused)
        if pause is None:
            yield slot
        slot = job.schedule.latest_at((pause.paused_at if pause else slot) - timedelta.resolution)


def pause_at(slot: datetime, paused: Iterable[Pause]) -> Pause | None:
    """Return the pause in which a slot came due, or None if it came due in no pause."""
    return next((pause for pause in paused if pause.covers(slot)), None)


def verdict(job: Job, slot: datetime, now: datetime, paused: Sequence[Pause], *, is_kept: bool) -> SlotRow:
    """Return the row of a slot: skipped if the slot came due in a pause, queued if it is in time or ``is_kept``, and
    otherwise missed.
    """
    if pause_at(slot, paused):
        return SlotRow(slot, State.SKIPPED, "paused")
    if not plan.is_late(slot, now):
        return SlotRow(slot)
    if not plan.is_in_grace(job, slot, now):
        return SlotRow(slot, State.MISSED, "grace")
    if job.misfire != "skip" and is_kept:
        return SlotRow(slot)
    return SlotRow(slot, State.MISSED, REASONS[job.misfire])


def count_missed(job: Job, rows: list[SlotRow]) -> None:
    """Count and log the slots of a job that were missed in an outage. The log also has the number of slots that still
    run.
    """
    missed = Counter(str(row.reason) for row in rows if row.state == State.MISSED)
    if missed:
        left = sum(row.state == State.QUEUED for row in rows)
        report_missed(job.name, missed, f"misfire={job.misfire}; {left} of the late slots still run")


def miss_late(connection: Connection, registry: Registry, held: Mapping[str, datetime] = slots.NONE_HELD) -> None:
    """Apply the misfire policies to queued slots that have not been started.

    ``held`` has the start of the pause for each paused job, whose slots are skipped.
    """
    ended: dict[str, Counter[str]] = {}
    jobs = [*registry.scheduled(), *registry.keyed()]
    for job, reason in slots.miss(connection, jobs, TOLERANCE.total_seconds(), held):
        ended.setdefault(job, Counter())[reason] += 1
    for job, reasons in ended.items():
        skipped = reasons.pop("paused", 0)
        if skipped:
            emit(SlotSkipped(job, skipped, "paused"))
        if reasons:
            report_missed(job, reasons, "no worker started them in time")


def report_missed(job: str, reasons: Counter[str], why: str) -> None:
    """Count and log slots that were missed."""
    counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
    metrics.runs_ended(job, {State.MISSED: reasons.total()})
    emit(SlotMissed(job, reasons.total(), counts, why))
