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
#: The error that a forked child raises, and the kind of effect that it tries to leave.
OF_A_CHILD, BY_A_CHILD = "raised in a forked child", "child"


@dataclass(frozen=True)
class Spec:
    """What a job of the workload promises."""

    name: str
    #: Its slots are the multiples of this; none: it is requested.
    every_seconds: int | None = None
    exclusive: bool = True
    max_retries: int = 3
    misfire: str = "latest"
    #: Whether it may end well, with one effect.
    may_succeed: bool = True
    #: Whether it may use up its retries.
    may_die: bool = False
    #: Whether it kills the process that runs it.
    is_poison: bool = False
    #: Whether its success leaves an effect.
    has_effect: bool = True
    #: Whether PostgreSQL refuses its success.
    is_refused: bool = False
    #: Whether a failed attempt is tried again after a delay, and so gives up its place.
    has_delay: bool = True
    #: Whether a waiting slot replaces older ones.
    keeps_newest: bool = False
    #: How many of its runs may be at work at once under each name of a limit.
    at_once: int | None = None
    #: How many of its runs may start within how many seconds.
    pace: tuple[int, float] | None = None


@dataclass(frozen=True)
class RunRow:
    """A run as the ledger has it in the end."""

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
    #: How often it was postponed.
    laters: int = 0
    #: The names of its limits.
    limits: list[str] | None = None

    @property
    def was_cancelled(self) -> bool:
        """Whether a cancel has ended it."""
        return (self.state, self.reason) == ("dead", "cancelled")


@dataclass(frozen=True)
class Transition:
    """A change of a run's state, written by a trigger in the very transaction that made it.

    A change of a waiting run's reason, as when it has found that it must wait for another, is noted too.
    """

    run_id: int
    before: str | None
    after: str
    reason: str | None
    attempt: int
    failures: int
    crashes: int
    token: int | None
    #: Of the process that had it or has it.
    process_id: int | None
    worker: str | None
    due_at: datetime
    at: datetime
    xid: int
    error: str | None = None
    #: When its transaction committed.
    committed_at: datetime | None = None

    @property
    def is_note(self) -> bool:
        """Whether the run waits as before, for another reason."""
        return self.before == self.after != "running"


@dataclass(frozen=True)
class Effect:
    """What an attempt left in its own transaction: ``done`` once, or ``step`` at each checkpoint of a sweep."""

    run_id: int
    kind: str
    step: int
    token: int
    attempt: int
    began_at: datetime
    at: datetime
    #: When its transaction committed, by PostgreSQL's own account.
    committed_at: datetime
    xid: int
    #: The changes of an earlier run's session that this attempt found in its own.
    found: str = ""


@dataclass(frozen=True)
class FaultEvent:
    """A fault that was injected."""

    kind: str
    at: datetime
    healed_at: datetime
    #: What it hit, for people.
    target: str = ""
    #: The processes it hit; none: a server, and thereby everyone.
    pids: frozenset[int] = frozenset()
    #: Whether recovery is counted from when it was healed, as with a server, or from when it began.
    counts_from_heal: bool = False
    #: How soon what was interrupted must be going on, in seconds; None: that is not promised.
    bound_seconds: float | None = None
    #: Whether it may lose what Redis has.
    wipes_redis: bool = False


@dataclass(frozen=True)
class ProcessEvent:
    """A process was started or has ended."""

    at: datetime
    name: str
    pid: int
    what: str


@dataclass(frozen=True)
class Letter:
    """A message of the fast lane that Redis took."""

    number: int
    sent_at: datetime


@dataclass(frozen=True)
class Cancel:
    """A job has cancelled a run, and its transaction has committed."""

    run_id: int
    #: The state in which the cancel found it.
    found: str
    committed_at: datetime


@dataclass(frozen=True)
class Presence:
    """An attempt was in its job's function, by its own account, written past its session."""

    run_id: int
    token: int
    entered_at: datetime
    #: None if it could not say so any more.
    left_at: datetime | None


@dataclass(frozen=True)
class Change:
    """A change that a job has committed, and of which a run that waited is to take notice."""

    run_id: int
    number: int
    #: Whether the run has seen it.
    is_seen: bool


@dataclass(frozen=True)
class KeptAttempt:
    """An attempt that the ledger has kept."""

    run_id: int
    attempt: int
    outcome: str


@dataclass
class History:
    """A round."""

    seed: int
    specs: dict[str, Spec]
    #: Since when and until when slots are checked, by the database's clock.
    since: datetime
    until: datetime
    lease_seconds: float
    max_crashes: int
    runs: list[RunRow]
    transitions: list[Transition] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    faults: list[FaultEvent] = field(default_factory=list)
    processes: list[ProcessEvent] = field(default_factory=list)
    #: Runs whose request was committed, as its client was told.
    acknowledged: list[int] = field(default_factory=list)
    #: Runs of which the requesting transaction left word, whether or not the client heard of the commit.
    requested: list[int] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    plant: str | None = None
    cancels: list[Cancel] = field(default_factory=list)
    presences: list[Presence] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    kept: list[KeptAttempt] = field(default_factory=list)
    #: How many runs under its limit a run has seen at work.
    uses: list[tuple[int, int]] = field(default_factory=list)
    #: When the row of a subject was taken away, by its id. One with a negative id never had any.
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
        """What its job promises."""
        return self.specs[run.job]

    def faults_between(self, begin: datetime, end: datetime) -> list[FaultEvent]:
        """The faults that were in force at some time of that span."""
        return [fault for fault in self.faults if fault.at <= end and fault.healed_at >= begin]

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return asdict(self)


def by_run(rows: Iterable[T]) -> dict[int, list[T]]:
    """Rows by the run they are about."""
    found: dict[int, list[T]] = defaultdict(list)
    for row in rows:
        found[row.run_id].append(row)
    return found


def seconds(span: timedelta) -> float:
    """A span as a number."""
    return span.total_seconds()
