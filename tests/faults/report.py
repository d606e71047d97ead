"""The output for people: a line for each round, the history of each violation, and a summary."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from tests.faults.attempts import is_claim
from tests.faults.checker import Recovery, recoveries
from tests.faults.history import Effect, History, Transition
from tests.faults.violation import Violation

#: At most this many violations of each kind are described in full.
MOST_TOLD = 3
NEAR = timedelta(seconds=3)
#: The kinds of violation behind the three words of the summary.
LOST, DOUBLED, STUCK = {"lost", "slot lost", "letter lost", "retry dropped"}, {"doubled", "slot doubled"}, {"stuck"}


@dataclass
class Tally:
    """The numbers of all rounds."""

    seeds: list[int] = field(default_factory=list)
    slots: int = 0
    runs: int = 0
    attempts: int = 0
    effects: int = 0
    letters: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    worst: dict[str, list[Recovery]] = field(default_factory=lambda: defaultdict(list))

    def add(self, history: History, violations: Iterable[Violation]) -> None:
        """Add the numbers of a round."""
        self.seeds.append(history.seed)
        self.slots += sum(run.slot is not None for run in history.runs)
        self.runs += len(history.runs)
        self.attempts += sum(map(is_claim, history.transitions))
        self.effects += len(history.effects)
        self.letters += len(history.letters)
        self.faults.update(fault.kind for fault in history.faults)
        self.kinds.update(violation.kind for violation in violations)
        for recovery in recoveries(history):
            self.worst[recovery.fault.kind].append(recovery)

    def count(self, kinds: set[str]) -> int:
        """Return the number of violations of these kinds."""
        return sum(self.kinds[kind] for kind in kinds)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the summary."""
        yield f"rounds {len(self.seeds)}, seeds {self.seeds[0]} to {self.seeds[-1]}"
        yield (
            f"slots {self.slots}, runs {self.runs}, attempts {self.attempts}, effects {self.effects}, "
            f"fast-lane messages {self.letters}, faults {self.faults.total()}"
        )
        yield f"{'fault':28} {'times':>5} {'interrupted':>11} {'worst alone':>11} {'worst':>7} {'bound':>7}"
        for kind, times in sorted(self.faults.items()):
            yield self.fault_line(kind, times)
        others = self.kinds.total() - self.count(LOST) - self.count(DOUBLED) - self.count(STUCK)
        yield (
            f"lost {self.count(LOST)}, doubled {self.count(DOUBLED)}, stuck {self.count(STUCK)}, "
            f"other violations {others}"
        )

    def fault_line(self, kind: str, times: int) -> str:
        """Return a line for a kind of fault, with the time until interrupted runs went on."""
        found = self.worst[kind]
        alone = [recovery.seconds for recovery in found if not recovery.is_disturbed]
        bound = next((recovery.fault.bound_seconds for recovery in found), None)
        values = (in_seconds(alone), in_seconds([recovery.seconds for recovery in found]), in_seconds([bound]))
        return f"{kind:28} {times:5} {len(found):11} {values[0]:>11} {values[1]:>7} {values[2]:>7}"


def in_seconds(values: list[float | None] | list[float]) -> str:
    """Return the largest value, or a dash if there is none."""
    known = [value for value in values if value is not None]
    return f"{max(known):.1f} s" if known else "-"


def round_line(history: History, violations: list[Violation]) -> str:
    """Return one line for a round."""
    ended = Counter(run.state for run in history.runs)
    states = ", ".join(f"{count} {state}" for state, count in ended.most_common())
    verdict = f"{len(violations)} VIOLATIONS" if violations else "no violation"
    what = f"seed {history.seed} ({history.mode}): {len(history.faults)} faults, {len(history.runs)} runs"
    return f"{what} ({states}): {verdict}"


def story(history: History, violations: list[Violation]) -> Iterator[str]:
    """Yield the violations, each with the history of its run."""
    told: Counter[str] = Counter()
    yield f"SEED {history.seed}; violations: {dict(Counter(violation.kind for violation in violations))}"
    for violation in violations:
        told[violation.kind] += 1
        if told[violation.kind] <= MOST_TOLD:
            yield f"\n{violation}"
            if violation.run_id is not None:
                yield from run_story(history, violation.run_id)


def run_story(history: History, run_id: int) -> Iterator[str]:
    """Yield all events of one run and of the processes meanwhile, in the order of time."""
    yield f"  {history.run.get(run_id, 'no row')}"
    changes, effects = history.transitions_of.get(run_id, []), history.effects_of.get(run_id, [])
    begin = min((change.at for change in changes), default=history.since) - NEAR
    end = max((change.at for change in changes), default=history.until) + NEAR
    lines = [(change.at, change_line(change)) for change in changes]
    lines += [(effect.at, effect_line(effect)) for effect in effects]
    for fault in history.faults_between(begin, end):
        lines.append((fault.at, f"FAULT {fault.kind} on {fault.target} {sorted(fault.pids)}"))
        lines.append((fault.healed_at, f"HEALED {fault.kind} on {fault.target}"))
    meanwhile = [event for event in history.processes if begin <= event.at <= end]
    lines += [(event.at, f"process {event.pid} ({event.name}) {event.what}") for event in meanwhile]
    for at, line in sorted(lines):
        yield f"  {at:%H:%M:%S.%f} {line}"


def change_line(change: Transition) -> str:
    """Return a line for a transition."""
    return (
        f"{change.before} -> {change.after} ({change.reason}), attempt {change.attempt} with token {change.token} "
        f"of process {change.process_id} ({change.worker}); due {change.due_at:%H:%M:%S.%f}, transaction {change.xid}"
    )


def effect_line(effect: Effect) -> str:
    """Return a line for an effect."""
    return (
        f"effect {effect.kind} {effect.step} of attempt {effect.attempt} with token {effect.token}, "
        f"committed at {effect.committed_at:%H:%M:%S.%f} in transaction {effect.xid}"
    )
