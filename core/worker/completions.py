"""Runs that succeeded and left nothing in their session: recorded many together, by one thread per process.

A commit waits for the disk, whether it is of one run or of a hundred. So the thread that worked on such a run hands its
success over and goes on with the next; the message is acknowledged once the success is recorded, and not before. A run
that has work in its session commits by itself, with that work; so does one that may not overlap, since the next of its
job and key may be waiting for it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Engine

from core import database
from core.batching import Batcher
from core.ledger import runs
from core.ledger.leases import Lease
from core.observability.events import RunNotRecorded, emit
from core.worker.membership import Membership

#: The most that wait; beyond that, runs commit by themselves.
MOST_WAITING = 1000
#: How often ``flush`` looks, in seconds.
LOOK_AGAIN_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Completion:
    """A run that succeeded."""

    lease: Lease
    #: Its result as a JSON text.
    result: str | None
    #: Told whether its success was recorded; if not, its lease was lost. Must not raise.
    on_recorded: Callable[[bool], None]


class Completions(Batcher[Completion]):
    """Records the successes of this process's runs."""

    name = "rota-completions"
    most_together = 200
    gather_seconds = 0.002
    again_seconds = 1.0
    stop_seconds = 10.0

    def __init__(self, engine: Engine, membership: Membership) -> None:
        super().__init__()
        self._engine = engine
        self._membership = membership

    @property
    def has_room(self) -> bool:
        """Whether one more may be added."""
        return len(self._waiting) < MOST_WAITING and not self._stopping.is_set()

    def flush(self, timeout_seconds: float) -> None:
        """Wait until all that were added are recorded, or the time is up."""
        deadline = time.monotonic() + timeout_seconds
        while self._waiting and time.monotonic() < deadline:
            time.sleep(LOOK_AGAIN_SECONDS)

    def deal_with(self, batch: Sequence[Completion]) -> None:
        """Record ``batch``, and tell each."""
        recorded = self._record(batch)
        for completion in batch:
            completion.on_recorded(completion.lease.run_id in recorded)

    def failed(self, error: Exception) -> None:
        """Say so; with a traceback, unless it is the database's trouble."""
        is_expected = isinstance(error, database.DATABASE_AWAY)
        emit(RunNotRecorded(database.brief(error)), None if is_expected else error)

    def _record(self, batch: Sequence[Completion]) -> set[int]:
        """Record ``batch`` and return the runs of it whose leases were good. Raises SQLAlchemy's DBAPIError."""
        recorded: set[int] = set()
        for process_id, group in groupby(batch, key=lambda completion: completion.lease.process_id):
            if process_id == self._membership.process_id:  # else their leases ended with that registration
                with database.autocommit(self._engine) as connection:
                    outcomes = [(each.lease, each.result) for each in group]
                    recorded |= runs.succeed_many(connection, process_id, outcomes)
        return recorded
