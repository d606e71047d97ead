"""Makes one attempt of a run, from the claim to the recorded outcome.

``Executor`` lists the layers around each run in their order. Each layer is a file in ``core/middleware/``.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from core.clock import Clock, system_clock
from core.errors import Later, RotaError
from core.jobs.job import Job
from core.ledger.claims import NEVER_SUSPECT
from core.ledger.models import State
from core.middleware.argument_fit import ArgumentFit, MessageFit
from core.middleware.cancellation import Cancellation
from core.middleware.conflicts import Conflicts
from core.middleware.db_session import DatabaseSession
from core.middleware.execution import LOST, RECORDING, Carried, Execution, endings, surrounded
from core.middleware.failures import Failures
from core.middleware.forked_children import ForkedChildren
from core.middleware.key_schedule import KeySchedule
from core.middleware.leftovers import Leftovers
from core.middleware.metrics import Metrics
from core.middleware.overlap_lock import OverlapLock
from core.middleware.own_context import OwnContext
from core.middleware.plugin_middleware import PluginMiddleware
from core.middleware.redaction import Redaction
from core.middleware.subject_check import SubjectCheck
from core.middleware.time_limits import TimeLimits
from core.worker.claiming import Claims
from core.worker.completions import Completions
from core.worker.last_resort import LastResort
from core.worker.membership import Membership
from core.worker.outcomes import Recorder
from core.worker.wakes import Wakes


class Executor:
    """Makes one attempt of a run, or of a message of the fast lane."""

    def __init__(
        self,
        engine: Engine,
        membership: Membership,
        worker: str,
        *,
        suspected_after: int = NEVER_SUSPECT,
        completions: Completions | None = None,
    ) -> None:
        """``membership`` is the registration with which the executor claims runs.

        ``worker`` is the name of this process, for people. If ``suspected_after`` processes died during a run, the
        run's next attempt is made in a process of its own. ``completions`` records successes in batches. Without
        ``completions``, each thread records the success of its run.
        """
        self.engine = engine
        self.membership = membership
        self.claims = Claims(engine, membership, worker, suspected_after)
        #: Wakes the runs that wait for a run of this process.
        self.wakes = Wakes(engine)
        recorder = Recorder(engine, membership)
        last_resort = LastResort(engine, membership, completions)
        leftovers = Leftovers()
        # The middleware around each run, the outermost layer first.
        around_runs = [
            OwnContext(),  # the next run of the thread does not see context variables that this run sets
            OverlapLock(self.claims, self.wakes),  # claims the run, and keeps its lease until it has ended
            Cancellation(recorder),  # ends a cancelled run, which can no longer commit
            KeySchedule(engine, recorder),  # skips a slot whose schedule was removed or paused meanwhile
            Redaction(),  # hides the run's secret arguments in all texts of the inner layers
            ArgumentFit(self.claims, recorder),  # releases a run whose arguments only fit another release
            Metrics(),  # adds job, run, slot and attempt to every log line; counts and times the attempt
            SubjectCheck(engine, recorder),  # ends a run whose row is missing, before its first attempt
            leftovers,  # restores changes of the process's state, or logs them
            Failures(recorder),  # records errors of the inner layers, after the rollback
            Conflicts(recorder),  # repeats the inner layers after a conflict of transactions
            DatabaseSession(engine, recorder, completions),  # commits the job's work together with the run's success
            TimeLimits(last_resort, membership),  # within the session, so that it can cancel the session's statement
            ForkedChildren(),  # ends children that the job or plugins' middleware has forked
            PluginMiddleware(last_resort),  # innermost, within the limits, which also apply to middleware that hangs
        ]
        # The layers around a message of the fast lane, which has neither a lease nor an outcome in the ledger.
        around_messages = [
            OwnContext(),
            Redaction(),
            Metrics(),
            leftovers,
            MessageFit(),
            DatabaseSession(engine, recorder, completions),
            TimeLimits(last_resort, membership),
            ForkedChildren(),
            PluginMiddleware(last_resort),
        ]
        self._run, self._run_endings = surrounded(around_runs, call), endings(around_runs)
        self._work_on_message, self._message_endings = surrounded(around_messages, call), endings(around_messages)

    def execute(self, job: Job, run_id: int, *, now: datetime | None = None, carried: Carried | None = None) -> str:
        """Make one attempt of the run. Return the run's new state, or the verdict on the claim.

        In tests, ``now`` replaces the database's clock as ``Run.now``. ``carried`` is the message of the run. With a
        message, the run may have been claimed before, and its success may be recorded later, in a batch; the returned
        state is then ``recording``. Never raises an error of the job.
        """
        execution = Execution(self._run_endings, job, run_id, now, carried)
        status: str = LOST
        try:
            status = self._run(execution)
            return status
        finally:
            if execution.lease is not None and status != RECORDING:
                execution.end(status)

    def execute_fast(
        self,
        job: Job,
        args: Mapping[str, Any],
        message_id: str,
        clock: Clock = system_clock,
        *,
        dead_letter: Callable[[], None] | None = None,
    ) -> None:
        """Work on a message of the fast lane, and commit its session. Raises the job's errors.

        ``dead_letter`` dead-letters the message if the job exceeds its hard limit.
        """
        execution = Execution(
            self._message_endings, job, now=clock(), args=args, message_id=message_id, dead_letter=dead_letter
        )
        status = "failed"
        try:
            self._work_on_message(execution)
            status = State.SUCCEEDED
        except Later as later:
            refused = RotaError(
                f"job {job.name!r} is on the fast lane (ledger=False), and cannot be postponed by Later"
            )
            execution.failed(refused)
            raise refused from later
        except BaseException as error:
            execution.failed(error)
            raise
        finally:
            execution.end(status)


def call(execution: Execution) -> Any:
    """Call the job's function with its arguments. Raises BadArguments if they do not fit."""
    run = execution.run
    assert run is not None, "a session comes first"
    if execution.misfit is not None:
        raise execution.misfit
    return execution.job.function(run, **execution.kwargs)
