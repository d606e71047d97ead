"""Repeats an attempt at once if it failed for a reason outside of the job.

These reasons are a conflict with another transaction, a connection that was lost before the attempt's first statement,
and prepared statements that PostgreSQL had discarded.
"""

from typing import Any

from psycopg2.errors import DeadlockDetected, SerializationFailure

from core import database
from core.connections import CUT, FORGOTTEN
from core.ledger import leases
from core.ledger.leases import Lease
from core.middleware.execution import Execution, Layer, Proceed
from core.observability.events import RunConflict, emit
from core.worker.outcomes import Recorder

#: An attempt is repeated at once at most this many times.
MOST_CONFLICTS = 3


class Conflicts(Layer):
    """Repeats the inner layers with a new session, while the lease is valid."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers, and repeat the call if the next try may succeed."""
        lease = execution.lease
        assert lease is not None, "only a run of the ledger is repeated"
        for _ in range(MOST_CONFLICTS):
            try:
                return proceed(execution)
            except Exception as error:
                if not (is_conflict(error) and self._is_held(lease)):
                    raise
                emit(RunConflict(lease.job, lease.run_id, database.brief(error)))
        return proceed(execution)

    def _is_held(self, lease: Lease) -> bool:
        """Return whether the lease is still valid. Wait until PostgreSQL can be asked."""
        return bool(self._recorder.record(lease, lambda connection: leases.is_held(connection, lease)))


def is_conflict(error: BaseException) -> bool:
    """Return whether an attempt failed for a reason outside of the job, so that the next try may succeed."""
    if isinstance(getattr(error, "orig", None), SerializationFailure | DeadlockDetected):
        return True
    return database.blame(error) in {CUT, FORGOTTEN}
