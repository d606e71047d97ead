"""Reads the attempts of runs, and the times when the runs waited and worked, from the transitions of a history."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from core.ledger.processes import RETURN_SECONDS
from tests.faults.history import Effect, History, RunRow, Transition

FINAL = {"succeeded", "dead", "skipped", "missed", "orphaned"}
WAITING = {"queued", "retrying"}
#: The reasons of attempts that count as failures, and of attempts that count as crashes.
FAILED, CRASHED = {"error", "retries", "arguments", "result", "no retry"}, {"worker died", "crashes"}
#: A commit time is taken a moment before other transactions see the commit.
CLOCK_GRAIN = timedelta(milliseconds=20)
#: A fault may affect other runs for a lease after its end, and for this long in addition.
AFTERMATH = timedelta(seconds=5)
#: After these faults the dispatcher waits for ``PATIENCE`` before it treats silent processes as dead.
OUTAGES = (
    "PostgreSQL restarted",
    "PostgreSQL crashed",
    "PostgreSQL's sessions ended",
    "connections cut",
    "PostgreSQL stalled",
    "one-way silence",
)
PATIENCE = timedelta(seconds=RETURN_SECONDS)


@dataclass(frozen=True)
class Attempt:
    """The time between a claim and the next state of the run, according to the ledger."""

    claim: Transition
    end: Transition | None
    #: The transition of the cancel, which draws a new token.
    cancel: Transition | None = None

    @property
    def token(self) -> int | None:
        return self.claim.token

    @property
    def may_commit_until(self) -> Transition | None:
        """The transition that ended the attempt's right to commit."""
        return self.cancel or self.end


def is_claim(change: Transition) -> bool:
    """Return whether the transition is a claim."""
    return change.after == "running" and change.before != "running"


def is_cancel(change: Transition) -> bool:
    """Return whether the transition is the cancel of a running run. The run ends when its function has returned."""
    return change.before == change.after == "running"


def attempts(history: History, run_id: int) -> list[Attempt]:
    """Return the attempts of a run, in order."""
    found: list[Attempt] = []
    for change in history.transitions_of.get(run_id, []):
        if is_claim(change):
            found.append(Attempt(change, None))
        elif found and is_cancel(change):
            found[-1] = Attempt(found[-1].claim, None, change)
        elif found and change.before == "running":
            found[-1] = Attempt(found[-1].claim, change, found[-1].cancel)
    return found


@dataclass(frozen=True)
class Span:
    """A span in which a run was at work."""

    run_id: int
    begin: datetime
    end: datetime


def spans_of(history: History, run: RunRow) -> Iterator[Span]:
    """Yield the spans in which a run was at work: those of its attempts in the ledger, and those that its effects
    show.
    """
    for attempt in attempts(history, run.id):
        yield Span(
            run.id,
            attempt.claim.at,
            attempt.end.at if attempt.end else datetime.max.replace(tzinfo=run.queued_at.tzinfo),
        )
    for effect in history.effects_of.get(run.id, ()):
        yield Span(run.id, effect.began_at, effect.at)


def collisions(spans: Iterable[Span]) -> Iterator[tuple[Span, Span]]:
    """Yield each two spans of different runs that overlap."""
    longest: Span | None = None
    for span in sorted(spans, key=lambda span: (span.begin, span.end)):
        if longest and span.run_id != longest.run_id and longest.end - span.begin > CLOCK_GRAIN:
            yield longest, span
        longest = max(longest or span, span, key=lambda span: span.end)


@dataclass(frozen=True)
class Stay:
    """A span in which a run waited. It begins when others could see the run, and ends with the transition ``end``."""

    run_id: int
    due_at: datetime
    since: datetime
    end: Transition | None

    @property
    def place(self) -> tuple[datetime, int]:
        """The run's place among the runs of its key."""
        return self.due_at, self.run_id


def stays_of(history: History, run: RunRow) -> Iterator[Stay]:
    """Yield the spans in which a run waited."""
    changes = history.transitions_of.get(run.id, [])
    for change, following in pairwise([*changes, None]):
        if change is not None and change.after in WAITING:
            yield Stay(run.id, change.due_at, change.committed_at or change.at, following)


def exclusive_keys(history: History) -> Iterator[list[RunRow]]:
    """Yield the runs of each job and key whose runs may not overlap."""
    of_key: dict[tuple[str, str], list[RunRow]] = defaultdict(list)
    for run in history.runs:
        if history.spec(run).exclusive:
            of_key[run.job, run.key].append(run)
    yield from of_key.values()


def pid_of(change: Transition) -> int:
    """Return the pid of the process that had the run."""
    return int((change.worker or ":0").rpartition(":")[2])


def lease(history: History) -> timedelta:
    """Return the length of a lease."""
    return timedelta(seconds=history.lease_seconds)


def was_hit(history: History, attempt: Attempt) -> bool:
    """Return whether a fault hit the process of an attempt while the attempt was at work."""
    assert attempt.end is not None
    pid = pid_of(attempt.claim)
    during = history.faults_between(attempt.claim.at - AFTERMATH - lease(history), attempt.end.at)
    return any(not fault.pids or pid in fault.pids for fault in during)


def is_calm(history: History, begin: datetime, end: datetime) -> bool:
    """Return whether no fault or its aftermath fell into this time, and no process ended in it."""
    before = begin - AFTERMATH - lease(history)
    outages = [fault for fault in history.faults_between(begin - PATIENCE, end) if fault.kind in OUTAGES]
    died = any(event.what != "started" and before <= event.at <= end for event in history.processes)
    return not (outages or died or history.faults_between(before, end))


def effects_after(history: History, run_id: int, moment: datetime) -> list[Effect]:
    """Return the effects that a run committed after a moment."""
    return [effect for effect in history.effects_of.get(run_id, ()) if effect.committed_at - moment > CLOCK_GRAIN]
