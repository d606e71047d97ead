"""Checks a history against the invariants: a pure function from a history to a list of violations.

Each check is a function that looks for one kind of violation. No check depends on how a round is run. Times of events
are times of PostgreSQL: the commit times of transactions. The trigger records the transitions of one run in the order
of the locks on the run's row.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from tests.faults.attempts import (
    AFTERMATH,
    CLOCK_GRAIN,
    CRASHED,
    FAILED,
    FINAL,
    OUTAGES,
    PATIENCE,
    Attempt,
    Span,
    attempts,
    collisions,
    exclusive_keys,
    is_claim,
    lease,
    pid_of,
    spans_of,
    was_hit,
)
from tests.faults.flow_rules import RULES, waits_for_turn
from tests.faults.history import (
    BACKLOG,
    BY_A_CHILD,
    OF_A_CHILD,
    Effect,
    FaultEvent,
    History,
    Letter,
    RunRow,
    Transition,
    seconds,
)
from tests.faults.switches import TOLERANCE
from tests.faults.violation import Check, Violation

#: All transitions that are allowed. None is the state of a run that is not inserted yet.
LEGAL = {
    (None, "queued"), (None, "missed"),
    ("queued", "running"), ("queued", "skipped"), ("queued", "missed"), ("queued", "orphaned"),
    ("retrying", "running"), ("retrying", "orphaned"),
    ("running", "succeeded"), ("running", "retrying"), ("running", "dead"),
    ("running", "queued"),  # claimed ahead and released before its start, or postponed as a slot
    ("running", "orphaned"),  # its subject is missing
    ("queued", "dead"), ("retrying", "dead"), ("running", "running"),  # cancelled
}  # fmt: skip
#: Errors that do not come from the job: a connection was refused, or PostgreSQL no longer had a prepared statement of
#: Rota.
NOT_THE_JOBS = re.compile(r"connection to server .* failed|QueuePool limit|prepared statement .rota_")
#: Reasons of dead and waiting runs that the rules of flow control check.
OF_FLOW = {"cancelled", "later", "no retry"}
#: A rival that a claim saw may have ended this long before the skip was recorded.
RIVAL_SLACK = timedelta(seconds=1)
#: Redis syncs its file every second, so a message that it took just before it was killed may be lost.
UNSYNCED = timedelta(seconds=2)
#: A bound may be exceeded by this many seconds before it counts as broken, since the machine's two cores are busy.
ALLOWANCE_SECONDS = 10.0
#: The error of a write in a session that an earlier run has left read only.
LEFT_READ_ONLY = "in a read-only transaction"
#: A due run starts within this many seconds while another queue has a great backlog.
SHARED_SECONDS = 2.0


def check(history: History) -> list[Violation]:
    """Return all violations of all invariants."""
    return [violation for find in CHECKS for violation in find(history)]


def lost(history: History) -> Iterator[Violation]:
    """I4: every committed request has its run."""
    there = {*history.run, *(change.run_id for change in history.transitions)}
    for run_id in sorted({*history.acknowledged, *history.requested} - set(history.run)):
        yield Violation("I4", "lost", f"run {run_id} was requested, committed, and is not there", run_id)
    for run_id in sorted(set(history.acknowledged) - set(history.requested) & there):
        yield Violation("I4", "lost", f"run {run_id} was acknowledged, and its request is not there", run_id)


def stuck(history: History) -> Iterator[Violation]:
    """I4, I7: after all faults are healed, every due run ends."""
    for run in history.runs:
        if run.state not in FINAL and (run.slot or run.queued_at) <= history.until:
            yield Violation("I7", "stuck", f"run {run.id} of {run.job} is {run.state} when all has settled", run.id)


def slots(history: History) -> Iterator[Violation]:
    """I2, I8: each slot has exactly one row, and each row has a slot of its schedule."""
    for spec in history.specs.values():
        if spec.every_seconds is None:
            continue
        found = Counter(run.slot for run in history.runs if run.job == spec.name and run.slot is not None)
        due = set(slots_between(spec.every_seconds, history.since, history.until))
        for slot in sorted(due - set(found)):
            yield Violation("I8", "slot lost", f"{spec.name} has no row for its slot {slot:%H:%M:%S}")
        for slot, count in found.items():
            ids = [run.id for run in history.runs if run.job == spec.name and run.slot == slot]
            if count > 1:
                yield Violation("I2", "slot doubled", f"{spec.name} has rows {ids} for one slot {slot}", ids[0])
            if slot.microsecond or int(slot.timestamp()) % spec.every_seconds:
                yield Violation("I8", "slot invented", f"{spec.name} has a row for {slot}, which is no slot", ids[0])


def slots_between(every_seconds: int, since: datetime, until: datetime) -> list[datetime]:
    """Return the multiples of a period from ``since`` on, before ``until``."""
    whole = range(int(since.timestamp()), int(until.timestamp()))
    return [datetime.fromtimestamp(second, since.tzinfo) for second in whole if second % every_seconds == 0]


def effects_and_success(history: History) -> Iterator[Violation]:
    """I2, I3, I5: a run succeeds if and only if it has one effect, and both are written in the same transaction."""
    for run in history.runs:
        done = [effect for effect in history.effects_of.get(run.id, ()) if effect.kind == "done"]
        if len(done) > 1:
            yield Violation("I2", "doubled", f"run {run.id} of {run.job} has {len(done)} effects", run.id)
        if done and run.state != "succeeded":
            yield Violation("I3", "effect without success", f"run {run.id} of {run.job} is {run.state}", run.id)
        if run.state == "succeeded" and not done and history.spec(run).has_effect:
            yield Violation("I5", "success without effect", f"run {run.id} of {run.job} left nothing", run.id)
        success = {change.xid for change in history.transitions_of.get(run.id, ()) if change.after == "succeeded"}
        if done and success and success.isdisjoint(effect.xid for effect in done):
            yield Violation("I5", "torn", f"run {run.id} succeeded in another transaction than its effect", run.id)
    for run_id in history.effects_of.keys() - history.run.keys():
        yield Violation("I3", "effect without success", f"run {run_id} has an effect and no row", run_id)


def checkpoints(history: History) -> Iterator[Violation]:
    """I3: each batch is committed once."""
    for run_id, effects in history.effects_of.items():
        steps = Counter(effect.step for effect in effects if effect.kind == "step")
        for step, count in steps.items():
            if count > 1:
                yield Violation("I3", "doubled", f"run {run_id} committed its batch {step} {count} times", run_id)


def fences(history: History) -> Iterator[Violation]:
    """I3: each effect of an attempt was committed while the attempt held the lease."""
    for run_id, effects in history.effects_of.items():
        by_token = {attempt.token: attempt for attempt in attempts(history, run_id)}
        for effect in effects:
            yield from fence(effect, by_token.get(effect.token))


def fence(effect: Effect, attempt: Attempt | None) -> Iterator[Violation]:
    """Check one effect as ``fences`` does."""
    if attempt is None:
        yield Violation("I3", "unfenced", f"run {effect.run_id} has an effect of a token never drawn", effect.run_id)
    elif (ended := attempt.may_commit_until) is not None and effect.xid != ended.xid:
        late = effect.committed_at - ended.at
        if late > CLOCK_GRAIN:
            what = f"{effect.kind} {effect.step} of run {effect.run_id}"
            message = f"{what} was committed {seconds(late):.3f} s after its lease (token {effect.token}) had ended"
            yield Violation("I3", "unfenced", message, effect.run_id)


def tokens(history: History) -> Iterator[Violation]:
    """I3: each claim of a run draws a greater token, and no two claims draw the same token."""
    for run_id in history.transitions_of:
        drawn = [attempt.token or 0 for attempt in attempts(history, run_id)]
        if any(later <= earlier for earlier, later in pairwise(drawn)):
            yield Violation("I3", "token", f"run {run_id} drew {drawn}", run_id)
    claimed = Counter(change.token for change in history.transitions if change.after == "running")
    for token, count in claimed.items():
        if count > 1:
            yield Violation("I3", "token", f"{count} claims drew the token {token}")


def overlaps(history: History) -> Iterator[Violation]:
    """I6: two runs of an exclusive job and key are never at work at the same time, by the ledger and by their
    effects.
    """
    for runs in exclusive_keys(history):
        for earlier, later in collisions(span for run in runs for span in spans_of(history, run)):
            message = (
                f"runs {earlier.run_id} and {later.run_id} of {runs[0].job}, key {runs[0].key!r}, were at work at once"
            )
            yield Violation("I6", "overlap", message, later.run_id)


def legal(history: History) -> Iterator[Violation]:
    """I2, I8: only allowed transitions occur, and a final state never changes."""
    for run_id, changes in history.transitions_of.items():
        for change in changes:
            if (change.before, change.after) not in LEGAL:
                dropped = change.before in {"running", "retrying"} and change.after in {"skipped", "missed"}
                kind, invariant = ("retry dropped", "I8") if dropped else ("illegal", "I2")
                yield Violation(invariant, kind, f"run {run_id} went from {change.before} to {change.after}", run_id)


def counts(history: History) -> Iterator[Violation]:
    """I7: each claim counts as an attempt, and each failure and each crash is counted when it is recorded."""
    for run in history.runs:
        changes = history.transitions_of.get(run.id, [])
        left = [change for change in changes if change.before == "running" and change.after in {"retrying", "dead"}]
        given_up = sum(change.before == "running" and change.token is None for change in changes)
        expected = (
            sum(map(is_claim, changes)) - given_up,
            sum(change.reason in FAILED for change in left),
            sum(change.reason in CRASHED for change in left),
        )
        if (run.attempt, run.failures, run.crashes) != expected:
            message = f"run {run.id} counts {run.attempt, run.failures, run.crashes}, and {expected} took place"
            yield Violation("I7", "miscounted", f"{message} (attempts, failures, crashes)", run.id)


def retries(history: History) -> Iterator[Violation]:
    """I5, I8: a run is dead because of failures only if its retries are used up and its job may fail that often."""
    for run in history.runs:
        spec = history.spec(run)
        if run.state == "dead" and run.reason not in {"crashes", *OF_FLOW} and not spec.is_refused:
            allowed = spec.max_retries + 1
            if run.reason != "retries" or run.failures != allowed:
                message = f"run {run.id} of {run.job} is dead ({run.reason}) after {run.failures} failures of {allowed}"
                yield Violation("I8", "retry dropped", message, run.id)
            elif not spec.may_die:
                yield Violation("I5", "died", f"run {run.id} of {run.job}: {run.error}", run.id)
        if run.state in {"skipped", "missed"} and run.attempt:
            message = f"run {run.id} of {run.job} is {run.state} after {run.attempt} attempts"
            yield Violation("I8", "retry dropped", message, run.id)
        if run.state == "succeeded" and not spec.may_succeed:
            yield Violation("I5", "success without effect", f"run {run.id} of {run.job} cannot succeed", run.id)
        if run.state == "orphaned" and "subject" not in run.args:
            yield Violation("I1", "orphaned", f"run {run.id} of {run.job}, which every process has", run.id)


def reasons(history: History) -> Iterator[Violation]:
    """I8: a slot is missed only if it was late and its policy allows it. A run is skipped only because of a rival."""
    busy: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for run in history.runs:
        busy[run.job, run.key] += spans_of(history, run)
    for run in history.runs:
        spec = history.spec(run)
        if run.state == "missed" and run.slot and run.finished_at:
            if spec.misfire == "all" and run.reason != "grace":
                yield Violation(
                    "I8", "missed", f"{run.job} may miss no slot, and missed {run.slot} ({run.reason})", run.id
                )
            elif run.finished_at - run.slot < TOLERANCE:
                yield Violation("I8", "missed", f"run {run.id} of {run.job} was missed and was not late", run.id)
        if run.state == "skipped" and run.finished_at and not is_skipped_rightly(history, run, busy[run.job, run.key]):
            yield Violation("I8", "skipped", f"run {run.id} of {run.job} was skipped beside no other", run.id)


def is_skipped_rightly(history: History, run: RunRow, busy: Iterable[Span]) -> bool:
    """Return whether there was a reason to skip the run: another run of its key at work, an earlier run that was to be
    retried, or a newer waiting run.
    """
    if run.reason == "superseded":
        return history.spec(run).keeps_newest and is_replaced(history, run)
    return has_rival(run, busy) or (run.reason == "retrying" and is_behind(history, run))


def is_replaced(history: History, run: RunRow) -> bool:
    """Return whether a newer slot of the run's key existed when the run was skipped."""
    assert run.finished_at is not None
    assert run.slot is not None
    rivals = [other for other in history.runs if (other.job, other.key) == (run.job, run.key) and other.slot]
    return any(other.slot > run.slot and other.queued_at <= run.finished_at for other in rivals if other.slot)


def is_behind(history: History, run: RunRow) -> bool:
    """Return whether an earlier run of the same key waited for its next attempt when the run was skipped."""
    assert run.finished_at is not None
    return any(
        before.after == "retrying" and before.at <= run.finished_at and after.at >= run.finished_at - RIVAL_SLACK
        for other in history.runs
        if (other.job, other.key) == (run.job, run.key) and other.id < run.id
        for before, after in pairwise(history.transitions_of.get(other.id, ()))
    )


def has_rival(run: RunRow, spans: Iterable[Span]) -> bool:
    """Return whether another run of the same key was at work when the run was skipped."""
    assert run.finished_at is not None
    return any(
        span.run_id != run.id and span.begin <= run.finished_at and span.end >= run.finished_at - RIVAL_SLACK
        for span in spans
    )


def poison(history: History) -> Iterator[Violation]:
    """I7: a run that kills its processes is dead with the reason "crashes", and no other run dies because of it."""
    for run in history.runs:
        by_crashes = run.state == "dead" and run.reason == "crashes"
        if history.spec(run).is_poison and run.state in FINAL and not by_crashes:
            yield Violation("I7", "poison", f"run {run.id} of {run.job} is {run.state} ({run.reason})", run.id)
        if by_crashes and run.crashes != history.max_crashes:
            message = f"run {run.id} is dead of {run.crashes} crashes, and {history.max_crashes} are needed"
            yield Violation("I7", "poison", message, run.id)
        if by_crashes and not history.spec(run).is_poison and not was_hit(history, attempts(history, run.id)[-1]):
            message = f"run {run.id} of {run.job} died beside a run that kills its processes"
            yield Violation("I7", "poison", message, run.id)


def letters(history: History) -> Iterator[Violation]:
    """Fast lane: every message that Redis took is worked on at least once, unless Redis itself lost it."""
    for letter in missing(history.letters, history.received, history.faults):
        yield Violation("fast lane", "letter lost", f"message {letter.number} of {letter.sent_at:%H:%M:%S.%f}")


def missing(sent: Iterable[Letter], received: Iterable[int], faults: Iterable[FaultEvent]) -> list[Letter]:
    """Return the messages of the fast lane that no process has worked on, and that Redis has not lost."""
    arrived = set(received)
    wiped_at = max((fault.healed_at for fault in faults if fault.wipes_redis), default=None)
    return [
        letter
        for letter in sent
        if letter.number not in arrived and (wiped_at is None or wiped_at < letter.sent_at - UNSYNCED)
    ]


@dataclass(frozen=True)
class Recovery:
    """The time after a fault until an interrupted or waiting run went on."""

    fault: FaultEvent
    seconds: float
    run_id: int
    #: Whether another fault was in force meanwhile. The time then says little about this fault.
    is_disturbed: bool


def recoveries(history: History) -> Iterator[Recovery]:
    """Yield the longest recovery of each fault that interrupted runs."""
    for fault in history.faults:
        since = fault.healed_at if fault.counts_from_heal else fault.at
        waits = {run_id: seconds(going_on - since) for run_id, going_on in interrupted(history, fault, since)}
        if waits:
            worst = max(waits, key=lambda run_id: waits[run_id])
            end = since + timedelta(seconds=waits[worst])
            yield Recovery(fault, max(waits[worst], 0.0), worst, is_disturbed(history, fault, end))


def interrupted(history: History, fault: FaultEvent, since: datetime) -> Iterator[tuple[int, datetime]]:
    """Yield the runs that worked in a process that was hit, or that waited at that time, each with the time when it
    went on.
    """
    for run_id, changes in history.transitions_of.items():
        for before, after in pairwise(changes):
            if before.at <= since < after.at and is_of(before, after, fault, since):
                going_on = next_claim(changes, after)
                if not waits_for_turn(history, run_id, since, going_on):
                    yield run_id, going_on


def is_of(before: Transition, after: Transition, fault: FaultEvent, since: datetime) -> bool:
    """Return whether the fault interrupted or delayed a run between two of its transitions."""
    if after.reason == "overlap" or after.after in {"missed", "skipped"}:
        return False
    if before.after == "running":
        pid = pid_of(before)
        return after.reason in CRASHED and (not fault.pids or pid in fault.pids)
    return before.due_at <= since and not fault.pids


def next_claim(changes: list[Transition], after: Transition) -> datetime:
    """Return when the run was claimed again, or ended."""
    rest = changes[changes.index(after) :]
    return next((change.at for change in rest if change.after == "running" or change.after in FINAL), rest[-1].at)


def is_disturbed(history: History, fault: FaultEvent, end: datetime) -> bool:
    """Return whether another fault, or its aftermath, was in force before ``end``."""
    begin = fault.at - AFTERMATH
    outages = [other for other in history.faults_between(fault.at - PATIENCE, end) if other.kind in OUTAGES]
    others = [other for other in history.faults_between(begin, end) + outages if other is not fault]
    deaths = [event for event in history.processes if begin <= event.at <= end and event.what != "started"]
    return bool(others or any(event.pid not in fault.pids for event in deaths))


def bounds(history: History) -> Iterator[Violation]:
    """I7: a run that a fault interrupts goes on in time, if no other fault interferes."""
    for recovery in recoveries(history):
        bound = recovery.fault.bound_seconds
        if bound is not None and not recovery.is_disturbed and recovery.seconds > bound + ALLOWANCE_SECONDS:
            what = f"{recovery.fault.kind}: run {recovery.run_id} went on after {recovery.seconds:.1f} s"
            yield Violation("I7", "late", f"{what}, {bound:.0f} are promised", recovery.run_id, recovery.fault)


def charged(history: History) -> Iterator[Violation]:
    """I4, I7: an error that does not come from the job does not count as a failure, nor a stall of PostgreSQL as a
    crash.
    """
    for run_id, changes in history.transitions_of.items():
        for change in changes:
            if change.reason in FAILED and change.before == "running" and NOT_THE_JOBS.search(change.error or ""):
                yield Violation("I4", "charged", f"run {run_id} counts a failure: {change.error}", run_id)
            is_crash = change.reason in CRASHED and change.before == "running" and not kills_itself(history, run_id)
            if is_crash and has_only_stalled(history, change):
                yield Violation("I7", "charged", f"run {run_id} counts a crash of a stall of PostgreSQL", run_id)


def kills_itself(history: History, run_id: int) -> bool:
    """Return whether a run kills its process. It may run in a process of its own, for which there is no event."""
    return run_id in history.run and history.spec(history.run[run_id]).is_poison


def has_only_stalled(history: History, crash: Transition) -> bool:
    """Return whether a stall of PostgreSQL is the only possible reason why the process of a crashed run lost its
    lease.
    """
    pid = pid_of(crash)
    since = crash.at - PATIENCE - 2 * lease(history) - AFTERMATH
    faults = [fault for fault in history.faults_between(since, crash.at) if not fault.pids or pid in fault.pids]
    ended = {event.pid for event in history.processes if event.what != "started" and since <= event.at <= crash.at}
    has_died = bool(ended & {pid, command_of(history, pid)})
    return not has_died and {fault.kind for fault in faults} == {"PostgreSQL stalled"}


def command_of(history: History, pid: int) -> int:
    """Return the pid of the command that started a worker process. It is the nearest smaller pid of a worker; both end
    together.
    """
    workers = [event.pid for event in history.processes if event.name.startswith("worker") and event.what == "started"]
    return max((worker for worker in workers if worker <= pid), default=pid)


def children(history: History) -> Iterator[Violation]:
    """I3: a child that a job forks writes neither an outcome nor an effect."""
    for change in history.transitions:
        if OF_A_CHILD in (change.error or ""):
            yield Violation("I3", "child", f"a forked child has ended run {change.run_id}", change.run_id)
    for effect in history.effects:
        if effect.kind == BY_A_CHILD:
            yield Violation("I3", "child", f"a forked child has left an effect of run {effect.run_id}", effect.run_id)


def sessions(history: History) -> Iterator[Violation]:
    """Clean sessions: no run finds in its session what another run has changed there."""
    for effect in history.effects:
        if effect.found:
            message = f"run {effect.run_id} found {effect.found} of another run in its session"
            yield Violation("session", "unclean", message, effect.run_id)
    for change in history.transitions:
        if LEFT_READ_ONLY in (change.error or ""):
            message = f"run {change.run_id} found its session read only, as another run had left it"
            yield Violation("session", "unclean", message, change.run_id)


def refusals(history: History) -> Iterator[Violation]:
    """I7: if PostgreSQL refuses the success of a run, the run is dead with the reason "result" after this one
    failure.
    """
    for run in history.runs:
        is_told = (run.state, run.reason, run.failures) == ("dead", "result", 1)
        by_crashes = run.state == "dead" and run.reason == "crashes"
        if history.spec(run).is_refused and run.state in FINAL and not (is_told or by_crashes):
            yield Violation("I7", "refused", f"run {run.id} of {run.job} is {run.state} ({run.reason})", run.id)


def shares(history: History) -> Iterator[Violation]:
    """I7: due runs start in time while another queue has a great backlog, if no other fault interferes."""
    for fault in history.faults:
        if fault.kind != BACKLOG:
            continue
        for run_id, since, until in waits(history, fault):
            waited = seconds(until - since)
            if waited > SHARED_SECONDS + ALLOWANCE_SECONDS and not is_disturbed(history, fault, until):
                message = f"run {run_id} waited for {waited:.1f} s beside a backlog of another queue"
                yield Violation("I7", "crowded out", message, run_id, fault)


def waits(history: History, fault: FaultEvent) -> Iterator[tuple[int, datetime, datetime]]:
    """Yield the runs that came due during a fault, each with this time and the time of its start or end."""
    for run_id, changes in history.transitions_of.items():
        for before, after in pairwise(changes):
            due_at = max(before.at, before.due_at)
            is_waiting = before.after in {"queued", "retrying"} and fault.at <= due_at <= fault.healed_at
            if is_waiting and not waits_for_turn(history, run_id, due_at, after.at):
                yield run_id, due_at, after.at


CHECKS: list[Check] = [
    lost, stuck, slots, effects_and_success, checkpoints, fences, tokens, overlaps, legal, counts, retries, reasons,
    poison, letters, bounds, charged, children, sessions, refusals, shares, *RULES,
]  # fmt: skip
