"""The history of a round for the checker: only rows and events, without behaviour."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T", bound="Transition | Effect | Presence")
#: The name of the fault that fills one queue.
BACKLOG = "great backlog"
#: The error that a forked child raises, and the kind of the effect that the child tries to write.
OF_A_CHILD, BY_A_CHILD = "raised in a forked child", "child"


@dataclass(frozen=True)
class Spec:
    """The properties of a job of the workload."""

    name: str
    #: The period of its slots, whose times are multiples of it; None if its runs are requested.
    every_seconds: int | None = None
    exclusive: bool = True
    max_retries: int = 3
    misfire: str = "latest"
    #: Whether its runs may succeed, each with one effect.
    may_succeed: bool = True
    #: Whether its runs may use up their retries.
    may_die: bool = False
    #: Whether its runs kill their process.
    is_poison: bool = False
    #: Whether its success writes an effect.
    has_effect: bool = True
    #: Whether PostgreSQL refuses its success.
    is_refused: bool = False
    #: Whether a failed attempt is retried after a delay. The run then loses its place.
    has_delay: bool = True
    #: Whether a waiting slot replaces older slots.
    keeps_newest: bool = False
    #: At most this many of its runs may be at work for each name of a limit.
    at_once: int | None = None
    #: At most this many of its runs may start within this many seconds.
    pace: tuple[int, float] | None = None


@dataclass(frozen=True)
class RunRow:
    """The last state of a run in the ledger."""

    id: int
    job: str
    key: str
    slot: datetime | None
    state: str
    reason: str | None
    attempt: int
    failures: int
    crashes: int
    queued_at: datetime
    finished_at: datetime | None
    error: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    expires_at: datetime | None = None
    #: How many times the run was postponed.
    laters: int = 0
    #: The names of its limits.
    limits: list[str] | None = None

    @property
    def was_cancelled(self) -> bool:
        """Whether a cancel has ended the run."""
        return (self.state, self.reason) == ("dead", "cancelled")


@dataclass(frozen=True)
class Transition:
    """A change of a run's state. A trigger records it in the transaction that makes the change.

    A change of a waiting run's reason is also recorded, for example when the run must wait for another run.
    """

    run_id: int
    before: str | None
    after: str
    reason: str | None
    attempt: int
    failures: int
    crashes: int
    token: int | None
    #: The id of the process that has the run or had it before.
    process_id: int | None
    worker: str | None
    due_at: datetime
    at: datetime
    xid: int
    error: str | None = None
    #: The commit time of its transaction.
    committed_at: datetime | None = None

    @property
    def is_note(self) -> bool:
        """Whether only the reason of a waiting run has changed."""
        return self.before == self.after != "running"


@dataclass(frozen=True)
class Effect:
    """A row that an attempt wrote in its own transaction: ``done`` once, or ``step`` at each checkpoint of a sweep."""

    run_id: int
    kind: str
    step: int
    token: int
    attempt: int
    began_at: datetime
    at: datetime
    #: The commit time of its transaction, by PostgreSQL.
    committed_at: datetime
    xid: int
    #: The changes of an earlier run's session that the attempt found in its own session.
    found: str = ""


@dataclass(frozen=True)
class FaultEvent:
    """A fault that was injected."""

    kind: str
    at: datetime
    healed_at: datetime
    #: The server or the member that it hit, for people.
    target: str = ""
    #: The processes that it hit; empty for a server, which affects all processes.
    pids: frozenset[int] = frozenset()
    #: Whether the time of a recovery is counted from the end of the fault, as for a server, and not from its beginning.
    counts_from_heal: bool = False
    #: An interrupted run goes on within this many seconds; None if nothing is promised.
    bound_seconds: float | None = None
    #: Whether the fault may delete what Redis has.
    wipes_redis: bool = False


@dataclass(frozen=True)
class ProcessEvent:
    """The start or the end of a process."""

    at: datetime
    name: str
    pid: int
    what: str


@dataclass(frozen=True)
class Letter:
    """A message of the fast lane that Redis has taken."""

    number: int
    sent_at: datetime


@dataclass(frozen=True)
class Cancel:
    """A committed cancel of a run by a job."""

    run_id: int
    #: The state in which the cancel found it.
    found: str
    committed_at: datetime


@dataclass(frozen=True)
class Presence:
    """A time in which an attempt was in its job's function. The job records it outside of its session."""

    run_id: int
    token: int
    entered_at: datetime
    #: None if the end could not be recorded.
    left_at: datetime | None


@dataclass(frozen=True)
class Change:
    """A change that a job has committed, and that a waiting run must see."""

    run_id: int
    number: int
    #: Whether the run has seen the change.
    is_seen: bool


@dataclass(frozen=True)
class KeptAttempt:
    """An attempt that the ledger has kept."""

    run_id: int
    attempt: int
    outcome: str


@dataclass
class History:
    """All that was recorded in a round."""

    seed: int
    specs: dict[str, Spec]
    #: The start and the end of the time in which slots are checked, by the database's clock.
    since: datetime
    until: datetime
    lease_seconds: float
    max_crashes: int
    runs: list[RunRow]
    transitions: list[Transition] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    faults: list[FaultEvent] = field(default_factory=list)
    processes: list[ProcessEvent] = field(default_factory=list)
    #: The runs whose request the client saw committed.
    acknowledged: list[int] = field(default_factory=list)
    #: The runs that the requesting transaction recorded, even if the client did not see the commit.
    requested: list[int] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    plant: str | None = None
    cancels: list[Cancel] = field(default_factory=list)
    presences: list[Presence] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    kept: list[KeptAttempt] = field(default_factory=list)
    #: How many runs under the same limit each run has seen at work.
    uses: list[tuple[int, int]] = field(default_factory=list)
    #: When the row of each subject was deleted, by its id. A subject with a negative id never had a row.
    removed: dict[int, datetime] = field(default_factory=dict)
    mode: str = "auto"

    @cached_property
    def run(self) -> dict[int, RunRow]:
        """The runs by id."""
        return {run.id: run for run in self.runs}

    @cached_property
    def transitions_of(self) -> dict[int, list[Transition]]:
        """The changes of each run's state, in order."""
        return by_run(change for change in self.transitions if not change.is_note)

    @cached_property
    def notes_of(self) -> dict[int, list[Transition]]:
        """The changes of each waiting run's reason, in order."""
        return by_run(change for change in self.transitions if change.is_note)

    @cached_property
    def presences_of(self) -> dict[int, list[Presence]]:
        """The presences of each run, in order."""
        return by_run(self.presences)

    @cached_property
    def effects_of(self) -> dict[int, list[Effect]]:
        """The effects of each run, in order."""
        return by_run(self.effects)

    def spec(self, run: RunRow) -> Spec:
        """Return the properties of the run's job."""
        return self.specs[run.job]

    def faults_between(self, begin: datetime, end: datetime) -> list[FaultEvent]:
        """Return the faults that were in force at any time of the span."""
        return [fault for fault in self.faults if fault.at <= end and fault.healed_at >= begin]

    def as_json(self) -> dict[str, Any]:
        """Return the history as a value for a JSON file."""
        return asdict(self)


def by_run(rows: Iterable[T]) -> dict[int, list[T]]:
    """Return rows by the run that they are about."""
    found: dict[int, list[T]] = defaultdict(list)
    for row in rows:
        found[row.run_id].append(row)
    return found


def seconds(span: timedelta) -> float:
    """Return a span in seconds."""
    return span.total_seconds()
