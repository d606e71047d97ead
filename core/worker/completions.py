"""Records, in batches, the successes of runs that did not use their session. Each process has one thread for this.

A commit waits for the disk, and waits as long for one run as for a hundred. So the thread that worked on such a run
adds it to the batch and continues with the next run. The run's message is acknowledged only after its success is
recorded. A run that used its session is committed separately, together with its work.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from core import database
from core.batching import Batcher
from core.errors import BadResult
from core.ledger import runs
from core.ledger.leases import Lease
from core.ledger.models import State
from core.middleware.execution import LOST
from core.observability.events import RunNotRecorded, emit
from core.worker.membership import Membership
from core.worker.outcomes import Recorder, bad_result, refused_result

#: At most this many completions wait. While so many wait, the success of a further run is recorded by its own thread.
MOST_WAITING = 1000
#: A success that PostgreSQL has refused this many times, when it was recorded alone, is not tried again.
MOST_REFUSALS = 30
#: ``flush`` checks this often, in seconds.
LOOK_AGAIN_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Completion:
    """A run that succeeded."""

    lease: Lease
    #: The result of the run, as a JSON text.
    result: str | None
    #: Called with the recorded outcome, an error or None, and whether another run waits for the end of this run. The
    #: outcome is ``succeeded``, ``lost`` if the lease is lost, or ``dead`` with the error if PostgreSQL refuses the
    #: success. Must not raise an error.
    on_recorded: Callable[[str, BadResult | None, bool], None]
    #: The end of the attempt's log; None for the first attempt of a run.
    log: str | None = None


class Completions(Batcher[Completion]):
    """Records the successes of this process's runs.

    If PostgreSQL refuses a batch, the batch is split. Then only the run that PostgreSQL refuses ends as dead, and all
    others are recorded.
    """

    name = "rota-completions"
    most_together = 200
    gather_seconds = 0.002
    again_seconds = 1.0
    stop_seconds = 10.0

    def __init__(self, engine: Engine, membership: Membership) -> None:
        super().__init__()
        self._engine = engine
        self._membership = membership
        self._recorder = Recorder(engine, membership)
        #: The tokens of the completions that are recorded, while others of their batch are tried again.
        self._told: set[int] = set()
        #: The number of times that each token was refused when it was recorded alone.
        self._refusals: Counter[int] = Counter()

    @property
    def has_room(self) -> bool:
        """Whether another completion may be added."""
        return len(self._waiting) < MOST_WAITING and not self._stopping.is_set()

    def flush(self, timeout_seconds: float) -> None:
        """Wait until all added completions are recorded, but at most ``timeout_seconds``."""
        deadline = time.monotonic() + timeout_seconds
        while self._waiting and time.monotonic() < deadline:
            time.sleep(LOOK_AGAIN_SECONDS)

    def deal_with(self, batch: Sequence[Completion]) -> None:
        """Record ``batch``, and call ``on_recorded`` of each completion.

        If some completions cannot be recorded, the others are recorded first. Then one of the errors is raised.
        """
        left = [completion for completion in batch if completion.lease.token not in self._told]
        errors = self._record_apart(left)
        if errors:
            raise errors[0]
        self._told.clear()
        self._refusals.clear()

    def failed(self, error: Exception) -> None:
        """Log the error, with a traceback unless the database is unavailable."""
        is_expected = isinstance(error, database.DATABASE_AWAY)
        emit(RunNotRecorded(database.brief(error)), None if is_expected else error)

    def _record_apart(self, batch: Sequence[Completion]) -> list[Exception]:
        """Record ``batch``, in halves if PostgreSQL refuses it. Return the errors of the completions that must wait."""
        if not batch:
            return []
        try:
            recorded = self._record(batch)
        except (DBAPIError, ValueError) as error:
            if database.is_passing(error):
                return [error]
            if len(batch) == 1:
                return self._refuse(batch[0], error)
            half = len(batch) // 2
            return self._record_apart(batch[:half]) + self._record_apart(batch[half:])
        for completion in batch:
            is_awaited = recorded.get(completion.lease.run_id)
            self._tell(completion, LOST if is_awaited is None else State.SUCCEEDED, is_awaited=bool(is_awaited))
        return []

    def _record(self, batch: Sequence[Completion]) -> dict[int, bool]:
        """Record ``batch``.

        Return its runs whose leases were valid, and for each whether another run waits for its end.

        Raises DBAPIError and ValueError.
        """
        process_id = self._membership.process_id
        own = [each for each in batch if each.lease.process_id == process_id]
        outcomes = [(each.lease, each.result) for each in own]
        if process_id is None or not outcomes:  # all leases are of a former registration, and have ended
            return {}
        with database.autocommit(self._engine) as connection:
            logs = {each.lease.run_id: each.log for each in own if each.log}
            return runs.succeed_many(connection, process_id, outcomes, logs)

    def _refuse(self, completion: Completion, error: Exception) -> list[Exception]:
        """End a run whose success is refused, unless a later try may be accepted."""
        lease = completion.lease
        self._refusals[lease.token] += 1
        if not (database.refuses_value(error) or self._refusals[lease.token] >= MOST_REFUSALS):
            return [error]
        refused = bad_result(error)
        is_recorded = self._recorder.record_failure(lease, refused_result(refused))
        self._tell(completion, *((State.DEAD, refused) if is_recorded else (LOST, None)))
        return []

    def _tell(
        self, completion: Completion, status: str, error: BadResult | None = None, *, is_awaited: bool = False
    ) -> None:
        self._told.add(completion.lease.token)
        completion.on_recorded(status, error, is_awaited)
