"""The attempts of runs, and when they waited and worked, read from the transitions of a history."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from core.ledger.processes import RETURN_SECONDS
from tests.faults.history import Effect, History, RunRow, Transition

FINAL = {"succeeded", "dead", "skipped", "missed", "orphaned"}
WAITING = {"queued", "retrying"}
#: Why a run left ``running`` without success, and what is counted for it.
FAILED, CRASHED = {"error", "retries", "arguments", "result", "no retry"}, {"worker died", "crashes"}
#: Commit times are taken a moment before others see the commit.
CLOCK_GRAIN = timedelta(milliseconds=20)
#: A fault's effect on others may go on for a lease after it, and for this long.
AFTERMATH = timedelta(seconds=5)
#: A dispatcher that lost PostgreSQL by one of these has patience with processes that seem dead, for so long.
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
    """One stay in ``running``, by the ledger."""

    claim: Transition
    end: Transition | None
    #: The cancel of a running run, which draws another token.
    cancel: Transition | None = None

    @property
    def token(self) -> int | None:
        return self.claim.token

    @property
    def may_commit_until(self) -> Transition | None:
        """The change with which its right to commit ended."""
        return self.cancel or self.end


def is_claim(change: Transition) -> bool:
    """Whether the run was claimed."""
    return change.after == "running" and change.before != "running"


def is_cancel(change: Transition) -> bool:
    """Whether the run was cancelled while it was running; it ends when its function has returned."""
    return change.before == change.after == "running"


def attempts(history: History, run_id: int) -> list[Attempt]:
    """The attempts of a run, in order."""
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
    """A run at work."""

    run_id: int
    begin: datetime
    end: datetime


def spans_of(history: History, run: RunRow) -> Iterator[Span]:
    """When a run was at work: each attempt by the ledger, and its last by its own effect."""
    for attempt in attempts(history, run.id):
        yield Span(
            run.id,
            attempt.claim.at,
            attempt.end.at if attempt.end else datetime.max.replace(tzinfo=run.queued_at.tzinfo),
        )
    for effect in history.effects_of.get(run.id, ()):
        yield Span(run.id, effect.began_at, effect.at)


def collisions(spans: Iterable[Span]) -> Iterator[tuple[Span, Span]]:
    """Each span that begins before one of another run has ended, with that one."""
    longest: Span | None = None
    for span in sorted(spans, key=lambda span: (span.begin, span.end)):
        if longest and span.run_id != longest.run_id and longest.end - span.begin > CLOCK_GRAIN:
            yield longest, span
        longest = max(longest or span, span, key=lambda span: span.end)


@dataclass(frozen=True)
class Stay:
    """A run that waits: since when others could see it, and what ended that."""

    run_id: int
    due_at: datetime
    since: datetime
    end: Transition | None

    @property
    def place(self) -> tuple[datetime, int]:
        """Its place among the runs of its key."""
        return self.due_at, self.run_id


def stays_of(history: History, run: RunRow) -> Iterator[Stay]:
    """When a run waited."""
    changes = history.transitions_of.get(run.id, [])
    for change, following in pairwise([*changes, None]):
        if change is not None and change.after in WAITING:
            yield Stay(run.id, change.due_at, change.committed_at or change.at, following)


def exclusive_keys(history: History) -> Iterator[list[RunRow]]:
    """The runs of each job and key whose runs may not overlap."""
    of_key: dict[tuple[str, str], list[RunRow]] = defaultdict(list)
    for run in history.runs:
        if history.spec(run).exclusive:
            of_key[run.job, run.key].append(run)
    yield from of_key.values()


def pid_of(change: Transition) -> int:
    """The process that had a run."""
    return int((change.worker or ":0").rpartition(":")[2])


def lease(history: History) -> timedelta:
    """The length of a lease."""
    return timedelta(seconds=history.lease_seconds)


def was_hit(history: History, attempt: Attempt) -> bool:
    """Whether a fault hit the process of an attempt while it was at work."""
    assert attempt.end is not None
    pid = pid_of(attempt.claim)
    during = history.faults_between(attempt.claim.at - AFTERMATH - lease(history), attempt.end.at)
    return any(not fault.pids or pid in fault.pids for fault in during)


def is_calm(history: History, begin: datetime, end: datetime) -> bool:
    """Whether no fault was in force in that time, nor its aftermath, and no process ended."""
    before = begin - AFTERMATH - lease(history)
    outages = [fault for fault in history.faults_between(begin - PATIENCE, end) if fault.kind in OUTAGES]
    died = any(event.what != "started" and before <= event.at <= end for event in history.processes)
    return not (outages or died or history.faults_between(before, end))


def effects_after(history: History, run_id: int, moment: datetime) -> list[Effect]:
    """What a run committed after a moment."""
    return [effect for effect in history.effects_of.get(run_id, ()) if effect.committed_at - moment > CLOCK_GRAIN]
