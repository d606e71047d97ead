"""Metrics and the log's context: job, run, slot and attempt on every line, and each attempt counted and timed."""

import logging
import time
from collections.abc import Callable
from typing import Any

from core.middleware.execution import Execution, Layer, Proceed
from core.observability import logs, metrics

logger = logging.getLogger(__name__)


class Metrics(Layer):
    """Logs and counts an attempt."""

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Put what the run is on every line that is logged within."""
        lease = execution.lease
        if lease is not None and lease.attempt == 1:
            observe(metrics.run_started, execution.job.name, (lease.claimed_at - lease.due_at).total_seconds())
        with logs.about(execution.fields):
            return proceed(execution)

    def ended(self, execution: Execution, status: str) -> None:
        """Log and count the end."""
        seconds = execution.seconds
        if seconds is None:
            seconds = time.perf_counter() - execution.began
        observe(metrics.run_ended, execution.job.name, status, seconds)
        if execution.lease is not None:
            logger.info("run.%s seconds=%.3f", status, seconds)


def observe(measure: Callable[..., None], *values: Any) -> None:
    """Measure, unless that fails, as on a full disk: a claimed run must come to its end all the same."""
    try:
        measure(*values)
    except Exception:  # what only observes a run never decides it
        logger.exception("metrics.not_written")
