"""Hides the values of a run's secret arguments in log lines and recorded errors while the run is worked on."""

from typing import Any

from core.jobs.secrets import secret_names
from core.middleware.execution import Execution, Layer, Proceed
from core.observability import redaction


class Redaction(Layer):
    """Hides the values of a run's secret arguments in this thread's log lines, and in the error that is recorded."""

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers, and hide the secrets in everything that they log and raise."""
        args = execution.lease.args if execution.lease is not None else execution.args
        names = {*secret_names(execution.job), *redaction.redacted()} if args else ()
        secrets = redaction.texts(args, {name.lower() for name in names}) if names else ()
        if not secrets:
            return proceed(execution)
        with redaction.hiding(secrets):
            return proceed(execution)
