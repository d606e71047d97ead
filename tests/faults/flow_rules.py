"""Checks a history against the rules of flow control: turns, cancels, deadlines, Later, subjects, retry rules, kept
attempts.

Each rule is a function that looks for one kind of violation, as in ``checker.py``.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta

from tests.faults.attempts import (
    AFTERMATH,
    CLOCK_GRAIN,
    CRASHED,
    FAILED,
    FINAL,
    WAITING,
    Attempt,
    Span,
    Stay,
    attempts,
    collisions,
    exclusive_keys,
    is_calm,
    is_claim,
    lease,
    pid_of,
    spans_of,
    stays_of,
)
from tests.faults.history import BACKLOG, Cancel, History, Presence, RunRow, Transition, seconds
from tests.faults.violation import Check, Violation

#: A claim may not see what another transaction has committed less than this time before.
SEEN_AFTER = timedelta(seconds=1)
#: The trigger reads the clock at most this long after the statement read it.
STATEMENT = timedelta(seconds=1)
#: A run starts this soon after its turn has come, and a cancelled run ends this soon, on a machine with two busy cores.
TURN_SECONDS, CANCEL_SECONDS = 12.0, 15.0
#: If a waiting run has one of these reasons, a worker has tried it.
TRIED = {"overlap", "limit", "later"}
#: The reasons of attempts that were begun, but are not counted.
UNCOUNTED = {"no connection"}
#: Faults because of which no process loses its leases.
KEEPS_LEASES = {
    "Redis wiped", "Redis restarted", "Redis away", "subjects away", BACKLOG, "two dispatchers", "slow network",
    "clock wrong by a minute", "paused briefly",
}  # fmt: skip
#: The fault that can stop a statement between two reads of the clock.
STALLED = "PostgreSQL stalled"


def order(history: History) -> Iterator[Violation]:
    """I6: the runs of one key start in the order of their due times, then of their ids."""
    for runs in exclusive_keys(history):
        stays = [stay for run in runs for stay in stays_of(history, run)]
        for started in stays:
            for overtaken in stays:
                if was_overtaken(overtaken, started):
                    message = (
                        f"run {started.run_id} of {runs[0].job} started before run {overtaken.run_id}, due earlier"
                    )
                    yield Violation("I6", "order", message, overtaken.run_id)


def was_overtaken(stay: Stay, other: Stay) -> bool:
    """Return whether a run of the same key with a later place started while the run of ``stay`` waited."""
    if other.end is None or not is_claim(other.end) or other.place <= stay.place:
        return False
    is_over = stay.end is not None and stay.end.at <= other.end.at
    return stay.since + SEEN_AFTER < other.end.at and not is_over


def places(history: History) -> Iterator[Violation]:
    """I6: a run loses its place among the runs of its key only by a counted failure with a delay, or by Later."""
    for runs in exclusive_keys(history):
        for run in runs:
            for attempt in attempts(history, run.id):
                end = attempt.end
                if end is not None and end.after in WAITING and end.due_at != attempt.claim.due_at:
                    gives_up = {"later", *({"error"} if history.spec(run).has_delay else ())}
                    if end.reason not in gives_up:
                        message = f"run {run.id} of {run.job} was handed back ({end.reason}) and is due later"
                        yield Violation("I6", "place lost", message, run.id)


def turns(history: History) -> Iterator[Violation]:
    """I4, I6: a run starts soon after its turn has come, if no fault interferes."""
    for runs in exclusive_keys(history):
        spans = [span for run in runs for span in spans_of(history, run)]
        stays = [stay for run in runs for stay in stays_of(history, run)]
        for stay in stays:
            if stay.end is not None and is_claim(stay.end):
                turn = turn_of(stay, spans, stays)
                waited = seconds(stay.end.at - turn)
                if waited > TURN_SECONDS and is_calm(history, turn, stay.end.at):
                    message = f"run {stay.run_id} of {runs[0].job} started {waited:.1f} s after its turn had come"
                    yield Violation("I6", "turn late", message, stay.run_id)


def turn_of(stay: Stay, spans: list[Span], stays: list[Stay]) -> datetime:
    """Return when the turn of a run came: when it was due, and no other run of its key was at work or came first."""
    assert stay.end is not None
    worked = [span.end for span in spans if span.run_id != stay.run_id and span.end <= stay.end.at]
    former = [each.end.at for each in stays if each.place < stay.place and each.end and each.end.at <= stay.end.at]
    return max([stay.since, stay.due_at, *worked, *former])


def waits_for_turn(history: History, run_id: int, begin: datetime, end: datetime) -> bool:
    """Return whether another run of an exclusive key was at work in that time."""
    run = history.run[run_id]
    if not history.spec(run).exclusive:
        return False
    rivals = [other for other in history.runs if (other.job, other.key) == (run.job, run.key) and other.id != run_id]
    spans = [span for other in rivals for span in spans_of(history, other)]
    return any(span.begin <= end and span.end >= begin for span in spans)


def requests(history: History) -> Iterator[Violation]:
    """I4: a request is never skipped."""
    for run in history.runs:
        if run.slot is None and run.state == "skipped":
            yield Violation("I4", "request skipped", f"run {run.id} of {run.job} was asked for ({run.reason})", run.id)


def tried(history: History) -> Iterator[Violation]:
    """I8: a slot that a worker has tried is not missed. The graces of this suite are longer than its rounds."""
    for run in history.runs:
        noted = history.transitions_of.get(run.id, []) + history.notes_of.get(run.id, [])
        if run.state == "missed" and run.slot and any(change.reason in TRIED or is_claim(change) for change in noted):
            message = f"run {run.id} of {run.job} was tried, and is missed ({run.reason})"
            yield Violation("I8", "tried and missed", message, run.id)


def presences(history: History) -> Iterator[Violation]:
    """I6: two runs of a key are never in their functions at the same time, even if one is cancelled. The functions
    record this.
    """
    for runs in exclusive_keys(history):
        spans = [span for run in runs for span in present(history, run)]
        for earlier, later in collisions(spans):
            message = f"runs {earlier.run_id} and {later.run_id} of {runs[0].job} were in their function at once"
            yield Violation("I6", "overlap", message, later.run_id)


def present(history: History, run: RunRow) -> Iterator[Span]:
    """Yield the spans in which a run was in its function with a valid lease. If the lease is lost, the span ends when
    the ledger records it.
    """
    by_token = {attempt.token: attempt for attempt in attempts(history, run.id)}
    for presence in history.presences_of.get(run.id, ()):
        attempt = by_token.get(presence.token)
        if attempt is not None and attempt.end is not None:
            yield Span(run.id, attempt.claim.at, left_at(history, presence, attempt, attempt.end))


def left_at(history: History, presence: Presence, attempt: Attempt, end: Transition) -> datetime:
    """Return when an attempt gave up its key."""
    by_itself = end.reason in {None, "cancelled", *FAILED} and not may_be_lost(history, attempt)
    return presence.left_at if by_itself and presence.left_at else end.at


def may_be_lost(history: History, attempt: Attempt) -> bool:
    """Return whether a fault may have caused the process of an attempt to lose its lease."""
    assert attempt.end is not None
    during = history.faults_between(attempt.claim.at - AFTERMATH - lease(history), attempt.end.at)
    pid = pid_of(attempt.claim)
    return any(fault.kind not in KEEPS_LEASES and (not fault.pids or pid in fault.pids) for fault in during)


def cancels(history: History) -> Iterator[Violation]:
    """I3: a cancelled run does not commit, does not start again, and ends soon. No other run is cancelled."""
    of_run: dict[int, list[Cancel]] = defaultdict(list)
    for cancel in history.cancels:
        of_run[cancel.run_id].append(cancel)
    for run in history.runs:
        asked = of_run.get(run.id)
        if run.was_cancelled and not asked:
            yield Violation("I4", "cancelled by nobody", f"run {run.id} of {run.job}", run.id)
        if asked:
            yield from cancelled(history, run, min(asked, key=lambda cancel: cancel.committed_at))


def cancelled(history: History, run: RunRow, cancel: Cancel) -> Iterator[Violation]:
    """Check one run as ``cancels`` does."""
    later = [change for change in history.transitions_of.get(run.id, []) if change.at > cancel.committed_at]
    if any(is_claim(change) for change in later) or (run.state in FINAL and not run.was_cancelled):
        message = f"run {run.id} of {run.job} was cancelled, and is {run.state} ({run.reason})"
        yield Violation("I3", "cancel undone", message, run.id)
    if run.was_cancelled and run.finished_at:
        took = seconds(run.finished_at - cancel.committed_at)
        if took > CANCEL_SECONDS and is_calm(history, cancel.committed_at, run.finished_at):
            yield Violation("I7", "cancel late", f"run {run.id} of {run.job} ended {took:.1f} s after it", run.id)


def deadlines(history: History) -> Iterator[Violation]:
    """A run starts before its deadline or is missed. The deadline applies only until the first start."""
    for run in history.runs:
        claims = [change for change in history.transitions_of.get(run.id, []) if is_claim(change)]
        if (
            run.expires_at
            and claims
            and claims[0].at > run.expires_at + STATEMENT
            and not stalled(history, claims[0].at)
        ):
            message = f"run {run.id} of {run.job} started at {claims[0].at:%H:%M:%S.%f}, after its deadline"
            yield Violation("deadline", "started late", message, run.id)
        if run.reason == "expired" and not is_expired_rightly(run, claims):
            message = f"run {run.id} of {run.job} is missed after {len(claims)} starts, deadline {run.expires_at}"
            yield Violation("deadline", "expired", message, run.id)


def is_expired_rightly(run: RunRow, claims: list[Transition]) -> bool:
    """Return whether a run was missed at its deadline, without a start."""
    return (
        not claims and run.expires_at is not None and run.finished_at is not None and run.finished_at >= run.expires_at
    )


def stalled(history: History, moment: datetime) -> bool:
    """Return whether PostgreSQL was stalled shortly before ``moment``."""
    return any(fault.kind == STALLED for fault in history.faults_between(moment - STATEMENT, moment))


def laters(history: History) -> Iterator[Violation]:
    """Each Later is counted apart from failures. It cannot postpone a run past its deadline."""
    for run in history.runs:
        put_off = [
            change
            for change in history.transitions_of.get(run.id, [])
            if change.reason == "later" and change.before == "running"
        ]
        if run.laters != len(put_off):
            message = f"run {run.id} of {run.job} counts {run.laters}, and was postponed {len(put_off)} times"
            yield Violation("Later", "later miscounted", message, run.id)
        if run.expires_at and any(change.after in WAITING and change.due_at > run.expires_at for change in put_off):
            yield Violation("Later", "later unbounded", f"run {run.id} is due after its deadline", run.id)
        if run.state == "dead" and run.reason == "later" and run.expires_at is None:
            yield Violation("Later", "later dead", f"run {run.id} of {run.job} may be postponed for 7 days", run.id)


def retry_rules(history: History) -> Iterator[Violation]:
    """A run is dead at once after an error that its job does not retry, and only after such an error."""
    for run in history.runs:
        is_told = (run.state, run.reason) == ("dead", "no retry")
        may_be = run.args.get("raises") in {"hopeless", "other"}
        if is_told and (not may_be or run.failures != 1):
            yield Violation("I8", "retry dropped", f"run {run.id} of {run.job} is dead: {run.error}", run.id)
        if may_be and run.failures and not is_told and not run.was_cancelled:
            message = f"run {run.id} of {run.job} is {run.state} ({run.reason}) after {run.failures} failures"
            yield Violation("retry rules", "tried again", message, run.id)


def subjects(history: History) -> Iterator[Violation]:
    """A run is orphaned because of its subject if and only if the subject was missing before its first attempt."""
    for run in history.runs:
        subject = run.args.get("subject")
        if subject is None:
            continue
        removed_at = history.removed.get(subject)
        is_away = subject < 0 or (
            removed_at is not None and run.finished_at is not None and removed_at < run.finished_at
        )
        if run.state == "orphaned" and not is_away:
            yield Violation("subject", "orphaned", f"run {run.id}, whose subject {subject} is there", run.id)
        if run.state == "succeeded" and subject < 0:
            yield Violation("subject", "subject ignored", f"run {run.id}, whose subject {subject} never was", run.id)


def changes(history: History) -> Iterator[Violation]:
    """I4: a run that ``unless="waiting"`` finds sees the changes of the transaction that found it."""
    for change in history.changes:
        run = history.run.get(change.run_id)
        if run is not None and run.state == "succeeded" and not change.is_seen:
            message = f"run {run.id} has not seen the change {change.number}, for which it was found waiting"
            yield Violation("I4", "change missed", message, run.id)


def kept_attempts(history: History) -> Iterator[Violation]:
    """Each attempt that did not succeed is kept with its outcome, and so is a success after such an attempt."""
    kept: dict[int, dict[int, str]] = defaultdict(dict)
    for each in history.kept:
        kept[each.run_id][each.attempt] = each.outcome
    for run in history.runs:
        expected = dict(worth_keeping(history, run))
        if run.state in FINAL and kept[run.id] != expected:
            message = f"run {run.id} of {run.job} has the attempts {kept[run.id]}, and {expected} took place"
            yield Violation("attempts", "attempt not kept", message, run.id)


def worth_keeping(history: History, run: RunRow) -> Iterator[tuple[int, str]]:
    """Yield the number and the outcome of each attempt that is kept. The attempt after an uncounted attempt has the
    same number.
    """
    for attempt in attempts(history, run.id):
        if attempt.end is not None:
            outcome = outcome_of(attempt, attempt.end)
            if outcome is not None:
                yield attempt.claim.attempt, outcome


def outcome_of(attempt: Attempt, end: Transition) -> str | None:
    """Return the outcome under which an attempt is kept, or None if it is not kept."""
    if end.after == "succeeded":
        return "succeeded" if attempt.claim.attempt > 1 else None
    if not was_begun(attempt):
        return None
    if end.reason in {"cancelled", "later"}:
        return str(end.reason)
    return "failed" if end.reason in FAILED else "crashed" if end.reason in CRASHED else "released"


def limits(history: History) -> Iterator[Violation]:
    """A limit is never exceeded, by the ledger and by what the limited runs have seen."""
    for runs in limited_together(history):
        most = history.spec(runs[0]).at_once
        spans = [span for run in runs for span in held_spans(history, run)]
        for span in spans if most is not None else ():
            beside = [other for other in spans if other.begin <= span.begin and other.end - span.begin > CLOCK_GRAIN]
            if most is not None and len(beside) > most:
                message = f"runs {[other.run_id for other in beside]} were at work at once, and {most} may be"
                yield Violation("limit", "limit exceeded", message, span.run_id)
    for run_id, at_work in history.uses:
        most = history.spec(history.run[run_id]).at_once if run_id in history.run else None
        if most is not None and at_work > most:
            yield Violation("limit", "limit exceeded", f"run {run_id} has seen {at_work}, and {most} may be", run_id)


def limited_together(history: History) -> Iterator[list[RunRow]]:
    """Yield the runs of each limit, by the limit's name."""
    under: dict[str, list[RunRow]] = defaultdict(list)
    for run in history.runs:
        for name in run.limits or ():
            under[name].append(run)
    yield from under.values()


def held_spans(history: History, run: RunRow) -> Iterator[Span]:
    """Yield the spans in which a run held its limits, by the ledger."""
    for attempt in attempts(history, run.id):
        yield Span(run.id, attempt.claim.at, attempt.end.at if attempt.end else history.until)


def paces(history: History) -> Iterator[Violation]:
    """In no span do more runs start than a token bucket allows that is refilled evenly."""
    for runs in limited_together(history):
        pace = history.spec(runs[0]).pace
        if pace is not None:
            found = [attempt for run in runs for attempt in attempts(history, run.id)]
            starts = sorted(attempt.claim.at for attempt in found if was_begun(attempt))
            yield from too_many(runs[0].job, starts, *pace)


def was_begun(attempt: Attempt) -> bool:
    """Return whether the function of a run was called, as far as the ledger knows. Only such an attempt keeps its
    token.
    """
    return attempt.end is None or attempt.end.token is not None or attempt.end.reason in UNCOUNTED


def too_many(job: str, starts: list[datetime], most: int, per_seconds: float) -> Iterator[Violation]:
    """Check the starts of one limit. The trigger may record a start later than it took place."""
    for first, begin in enumerate(starts):
        for number, end in enumerate(starts[first:], 1):
            if number > most + 1 + most * seconds(end - begin) / per_seconds:
                message = (
                    f"{number} runs of {job} started within {seconds(end - begin):.2f} s, {most} in {per_seconds} s may"
                )
                yield Violation("limit", "pace exceeded", message)
                return


RULES: list[Check] = [
    order, places, turns, requests, tried, presences, cancels, deadlines, laters, retry_rules, subjects, changes,
    kept_attempts, limits, paces,
]  # fmt: skip
