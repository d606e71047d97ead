"""Adds job, run, slot and attempt to every log line of an attempt, and counts and times the attempt."""

from collections.abc import Callable
from typing import Any

from core.ledger.models import State
from core.middleware.execution import LOST, Execution, Layer, Proceed
from core.observability import logs, metrics
from core.observability.events import MetricsNotWritten, RunLeaseLost, RunSucceeded, emit


class Metrics(Layer):
    """Logs and counts an attempt."""

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Put the run's fields on every line that is logged during the attempt."""
        lease = execution.lease
        if lease is not None and lease.attempt == 1:
            observe(metrics.run_started, execution.job.name, (lease.claimed_at - lease.due_at).total_seconds())
        with logs.about(execution.fields, execution.tail):
            return proceed(execution)

    def ended(self, execution: Execution, status: str) -> None:
        """Log and count the end of the attempt."""
        seconds, lease = execution.elapsed, execution.lease
        observe(metrics.run_ended, execution.job.name, status, seconds)
        if lease is not None and status == State.SUCCEEDED:
            emit(RunSucceeded(lease.job, lease.run_id, lease.attempt, round(seconds, 3)))
        elif lease is not None and status == LOST:
            emit(RunLeaseLost(lease.job, lease.run_id, lease.attempt, round(seconds, 3)))


def observe(measure: Callable[..., None], *values: Any) -> None:
    """Call ``measure``. Its error is logged and not raised, so that a full disk does not fail a run."""
    try:
        measure(*values)
    except Exception as error:  # noqa: BLE001 — an error of a metric must not decide a run's outcome
        emit(MetricsNotWritten(), error)
