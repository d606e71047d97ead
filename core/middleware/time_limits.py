"""Time limits: at the soft limit a job is interrupted, at the hard limit its process ends."""

from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError

from core.errors import TimeLimitExceeded
from core.middleware.execution import Execution, Layer, Proceed
from core.worker.interruption import limited
from core.worker.last_resort import LastResort


class TimeLimits(Layer):
    """Interrupts what runs too long; see ``core/worker/interruption.py`` for how."""

    def __init__(self, last_resort: LastResort) -> None:
        self._last_resort = last_resort

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """At the soft limit the job's statement is cancelled too, and that is told as what it is."""
        job, work = execution.job, execution.work
        assert work is not None, "a session comes first"
        give_up = partial(self._last_resort.give_up, execution)
        watch = limited(job.soft_limit, job.hard_limit, on_soft=work.cancel, on_hard=give_up)
        try:
            return watch.hold(partial(proceed, execution))
        except DBAPIError as error:
            if watch.exceeded:
                raise TimeLimitExceeded(f"soft limit of {job.soft_limit} passed during a statement") from error
            raise
        except TimeLimitExceeded:
            raise TimeLimitExceeded(f"soft limit of {job.soft_limit} passed{execution.inside}") from None
        finally:
            if watch.is_cancelling:
                work.abandon_connection()
