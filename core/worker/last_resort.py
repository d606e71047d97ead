"""Ends this process if a job does not end at its hard limit, or after its run was cancelled."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from core import database
from core.dispatcher import cancelled
from core.errors import TimeLimitExceeded
from core.ledger import runs
from core.ledger.leases import Lease
from core.ledger.models import State
from core.middleware.execution import Execution
from core.middleware.metrics import observe
from core.observability import logs, metrics
from core.observability.events import Event, MessageHardLimit, RunHardLimit, RunNotLeaving
from core.worker import tracebacks
from core.worker.completions import Completions
from core.worker.interruption import place_of
from core.worker.membership import Membership
from core.worker.outcomes import diagnose, seen_in

#: The process waits this many seconds for PostgreSQL before it ends in any case.
GIVE_UP_SECONDS = 5.0
#: EX_SOFTWARE of sysexits.h: the process ended itself at a hard limit.
HARD_LIMIT_EXIT = 70


@dataclass(frozen=True, slots=True)
class LastResort:
    """Ends this process, after it has recorded the outcome of the job's run in the ledger."""

    engine: Engine
    membership: Membership
    completions: Completions | None = None

    def give_up(self, execution: Execution, thread_id: int) -> None:
        """End this process, since the attempt in the thread does not end.

        Before that, record the attempt's failure, with the place of the thread in the code. A cancelled run ends too.
        """
        lease = execution.lease
        if lease is not None and lease.token in self.membership.in_hand.cancelled:
            why = RunNotLeaving(lease.job, lease.run_id, place_of(thread_id))
            self.end_process(why, self.release_all)
        elif lease is not None:
            self._give_up_run(execution, lease, thread_id)
        else:
            self._give_up_message(execution)

    def end_process(self, why: Event, *steps: Callable[[Connection], object]) -> None:
        """Log ``why``, run ``steps`` on a connection to PostgreSQL, and end this process."""
        timer = threading.Timer(GIVE_UP_SECONDS, os._exit, [HARD_LIMIT_EXIT])
        try:
            timer.start()
            logs.emit_unblocked(why)
            if self.completions is not None:
                self.completions.flush(GIVE_UP_SECONDS / 2)
            with database.autocommit(self.engine) as connection:
                for step in steps:
                    step(connection)
            logs.flush()
        finally:
            os._exit(HARD_LIMIT_EXIT)

    def release_all(self, connection: Connection) -> None:
        """Release the runs that this process is still working on. A cancelled run ends."""
        process_id = self.membership.process_id
        if process_id is not None:
            cancelled.tell(runs.release(connection, process_id, "its process was ended"))

    def _give_up_run(self, execution: Execution, lease: Lease, thread_id: int) -> None:
        job = execution.job
        why = RunHardLimit(job.name, lease.run_id, job.hard_limit.total_seconds())
        error = TimeLimitExceeded(f"hard limit of {job.hard_limit} passed{execution.inside}; its process was ended")
        failure = diagnose(job, lease, error, execution.elapsed)
        failure = seen_in(execution, failure, tracebacks.of_thread(thread_id))
        observe(metrics.run_ended, job.name, failure.state, job.hard_limit.total_seconds())
        self.end_process(why, lambda connection: runs.fail(connection, lease, failure), self.release_all)

    def _give_up_message(self, execution: Execution) -> None:
        """Dead-letter the message, which would otherwise also end the next process."""
        job, message_id = execution.job, execution.message_id
        why = MessageHardLimit(job.name, message_id, job.hard_limit.total_seconds())
        observe(metrics.run_ended, job.name, State.DEAD, job.hard_limit.total_seconds())
        self.end_process(why, self.release_all, lambda _connection: execution.make_dead_letter())
