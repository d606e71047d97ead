"""Ends a cancelled run when its function has returned. ``core/ledger/cancels.py`` explains how a cancel works."""

from typing import Any

from sqlalchemy.exc import DBAPIError

from core import database
from core.ledger import cancels
from core.ledger.cancels import CANCELLED
from core.middleware.execution import LOST, Execution, Layer, Proceed
from core.observability.events import RunCancelled, RunNotRecorded, emit
from core.worker.outcomes import Recorder, log_of


class Cancellation(Layer):
    """If an attempt could not commit because its run was cancelled, ends the run. Its key and limits are then free."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers. The outcome of an attempt of a cancelled run is ``cancelled``."""
        status = proceed(execution)
        return settled(self._recorder, execution, status) if status == LOST else status


def settled(recorder: Recorder, execution: Execution, status: str) -> str:
    """Return the outcome of an attempt that ended with ``status``: ``cancelled`` if the attempt lost its lease to a
    cancel.

    In that case, also end the run. If PostgreSQL refuses this, the heartbeat ends the run later.
    """
    lease = execution.lease
    if lease is None or status != LOST:
        return status
    try:
        by = recorder.record(lease, lambda connection: cancels.end(connection, lease, log_of(execution)))
    except (DBAPIError, ValueError) as error:
        emit(RunNotRecorded(database.brief(error)), error)
        return LOST
    if by is None:
        return LOST
    emit(RunCancelled(lease.job, lease.run_id, by))
    return CANCELLED
