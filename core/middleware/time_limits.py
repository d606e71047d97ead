"""Limits the time of a job: interrupts the job at the soft limit, and ends its process at the hard limit.

An attempt that has lost its lease, or whose run was cancelled, is interrupted at once.
"""

import threading
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError

from core.errors import TimeLimitExceeded
from core.middleware.execution import Execution, Layer, Proceed
from core.worker.interruption import Watch, limited
from core.worker.last_resort import LastResort
from core.worker.membership import Membership
from core.worker.outcomes import lost


class TimeLimits(Layer):
    """Interrupts a job that runs too long or has lost its lease. ``core/worker/interruption.py`` explains how."""

    def __init__(self, last_resort: LastResort, membership: Membership) -> None:
        self._last_resort = last_resort
        self._membership = membership

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers under a watch, and replace the error of an interrupted job.

        Raises TimeLimitExceeded at the soft limit, and LeaseLost if the lease was lost or the run was cancelled.
        """
        work, watch = execution.work, self._watch(execution)
        assert work is not None, "a session comes first"
        try:
            result = watch.hold(partial(self._begin, execution, proceed))
            if watch.may_not_commit:  # the job has swallowed the interruption
                raise lost(execution.lease)
            return result
        except BaseException as error:
            if watch.may_not_commit:
                raise lost(execution.lease) from error
            if watch.cause is TimeLimitExceeded:
                self._tell_limit(execution, error)
            raise
        finally:
            if watch.is_cancelling:
                work.abandon_connection()

    def _watch(self, execution: Execution) -> Watch:
        job, work, lease = execution.job, execution.work, execution.lease
        assert work is not None, "a session comes first"
        give_up = partial(self._last_resort.give_up, execution, threading.get_ident())
        return limited(
            job.soft_limit,
            job.hard_limit,
            on_soft=work.cancel,
            on_hard=give_up,
            on_lost=work.disconnect,
            token=lease.token if lease is not None else None,
        )

    def _begin(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers, unless the lease was lost or the run was cancelled before the watch began."""
        lease, membership = execution.lease, self._membership
        if lease is None:
            return proceed(execution)
        if membership.process_id != lease.process_id or lease.token in membership.in_hand.cancelled:
            raise lost(lease)
        return proceed(execution)

    def _tell_limit(self, execution: Execution, error: BaseException) -> None:
        passed = f"soft limit of {execution.job.soft_limit} passed"
        if isinstance(error, DBAPIError):
            raise TimeLimitExceeded(f"{passed} during a statement") from error
        if isinstance(error, TimeLimitExceeded):
            raise TimeLimitExceeded(f"{passed}{execution.inside}") from None
