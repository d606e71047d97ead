"""Checks the schedule of a slot before the slot's first attempt, if the schedule was made at run time. Slows the
schedule down while runs of its key die.
"""

from typing import Any

from sqlalchemy import Engine

from core import database
from core.jobs.keyed import Keyed
from core.ledger import key_checks
from core.ledger.key_checks import Standing
from core.ledger.leases import Lease
from core.ledger.models import State
from core.middleware.execution import LOST, Execution, Layer, Proceed
from core.observability import metrics
from core.observability.events import KeyBackoffNotRecorded, KeyBacksOff, RunSkipped, emit
from core.worker.outcomes import Recorder


class KeySchedule(Layer):
    """Skips a slot whose schedule was removed or paused after the dispatcher inserted it."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers, unless the run is a slot whose schedule is gone or paused."""
        lease = execution.lease
        if execution.job.keyed is None or lease is None or lease.slot is None:
            return proceed(execution)
        standing = self._recorder.record(lease, lambda connection: key_checks.check(connection, lease))
        if standing is None:
            return LOST
        execution.standing = standing
        if standing.skipped is None:
            return proceed(execution)
        metrics.run_ended(lease.job, State.SKIPPED)
        emit(RunSkipped(lease.job, lease.run_id, standing.skipped))
        return State.SKIPPED

    def ended(self, execution: Execution, status: str) -> None:
        """Count the dead runs of the key in a row. A success ends the back-off."""
        keyed, lease = execution.job.keyed, execution.lease
        if keyed is None or lease is None or not lease.key:
            return
        try:
            if status == State.DEAD and is_counted(execution.standing, keyed):
                self._died(lease, keyed)
            elif status == State.SUCCEEDED and may_back_off(execution.standing, keyed):
                with database.autocommit(self._engine) as connection:
                    key_checks.succeeded(connection, lease.job, lease.key)
        except database.DATABASE_AWAY as error:
            emit(KeyBackoffNotRecorded(lease.job, lease.run_id, database.brief(error)))

    def _died(self, lease: Lease, keyed: Keyed) -> None:
        with database.autocommit(self._engine) as connection:
            apart = key_checks.died(connection, lease.job, lease.key, keyed)
        if apart is not None:
            emit(KeyBacksOff(lease.job, lease.run_id, int(apart.total_seconds())))


def is_counted(standing: Standing | None, keyed: Keyed) -> bool:
    """Return whether the death of a run counts: the run is a slot of a schedule that is still there."""
    return keyed.backoff_after is not None and standing is not None and standing.schedule is not None


def may_back_off(standing: Standing | None, keyed: Keyed) -> bool:
    """Return whether the key of a successful run may be backing off, so that the success must be recorded."""
    return standing.is_failing if standing is not None else keyed.backoff_after is not None
