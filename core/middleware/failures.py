"""Records any error of a job as the run's failure, so that the worker continues. A `Later` is not a failure."""

from typing import Any

from core import database
from core.connections import REFUSED
from core.errors import Later, LeaseLost
from core.ledger import unconnected
from core.ledger.models import State
from core.middleware.execution import LOST, POSTPONED, RELEASED, Execution, Layer, Proceed
from core.observability.events import RunNotConnected, RunPostponed, emit
from core.worker import tracebacks
from core.worker.outcomes import Recorder, diagnose, in_words, log_of, refuse_later, report, seen_in


class Failures(Layer):
    """Records a failed attempt: the run is tried again after the job's delay, or is dead.

    If PostgreSQL had no connection for an attempt, the attempt does not count: the run is released and tried again
    later.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Record an error of the inner layers after the rollback. The outcome is the run's new state."""
        try:
            return proceed(execution)
        except LeaseLost as error:
            execution.failed(error)
            return LOST
        except Later as later:
            return self._postpone(execution, later)
        except BaseException as error:  # noqa: BLE001 — any error of a job is the run's failure, not the worker's
            execution.failed(error)
            if database.blame(error) == REFUSED:
                return self._release(execution, error)
            return self._record(execution, error)

    def _release(self, execution: Execution, error: BaseException) -> str:
        lease = execution.lease
        assert lease is not None, "only a run of the ledger is released"
        said = in_words(error).partition("\n")[0]
        state = self._recorder.record(lease, lambda connection: unconnected.release(connection, lease, said))
        if state is None:
            return LOST
        emit(RunNotConnected(lease.job, lease.run_id, state, said))
        return RELEASED if state == State.RETRYING else state

    def _postpone(self, execution: Execution, later: Later) -> str:
        """Postpone the run, unless the requested time is refused."""
        lease = execution.lease
        assert lease is not None, "only a run of the ledger is postponed"
        if refusal := refuse_later(lease, later):
            execution.failed(refusal)
            return self._record(execution, refusal)
        said = later.reason.partition("\n")[0] or "no reason given"
        ended = self._recorder.postpone(lease, later, log_of(execution))
        if ended is None:
            return LOST
        execution.was_postponed()
        emit(RunPostponed(lease.job, lease.run_id, str(ended.state), ended.until.isoformat(), ended.laters, said))
        return State.DEAD if ended.state == State.DEAD else POSTPONED

    def _record(self, execution: Execution, error: BaseException) -> str:
        lease = execution.lease
        assert lease is not None, "only a run of the ledger has a failure recorded"
        if lease.token in self._recorder.membership.in_hand.cancelled:  # the cancel caused the error
            return LOST
        schedule = execution.standing.schedule if execution.standing is not None else None
        failure = diagnose(execution.job, lease, error, execution.elapsed, schedule)
        failure = seen_in(execution, failure, tracebacks.of_error(error))
        report(lease, failure, execution.elapsed, error)
        return failure.state if self._recorder.record_failure(lease, failure) else LOST
