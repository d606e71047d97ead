"""Failures: whatever a job raises is the run's failure, not the worker's, and is recorded."""

from typing import Any

from core.errors import LeaseLost
from core.ledger import runs
from core.middleware.execution import LOST, Execution, Layer, Proceed
from core.worker.outcomes import Recorder, diagnose, report


class Failures(Layer):
    """Records a failed attempt: the run is tried again after the job's delay, or is dead."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Record what is raised within, once it is rolled back; the outcome is the state that the run is then in."""
        try:
            return proceed(execution)
        except LeaseLost as error:
            execution.failed(error)
            return LOST
        except BaseException as error:  # noqa: BLE001 — whatever a job raises is the run's failure, not the worker's
            execution.failed(error)
            return self._record(execution, error)

    def _record(self, execution: Execution, error: BaseException) -> str:
        lease = execution.lease
        assert lease is not None, "only a run of the ledger has a failure recorded"
        failure = diagnose(execution.job, lease, error)
        report(lease, failure, execution.elapsed, error)
        is_recorded = self._recorder.record(lease, lambda connection: runs.fail(connection, lease, failure))
        return failure.state if is_recorded else LOST
