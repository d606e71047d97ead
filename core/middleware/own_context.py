"""Gives each attempt a new context, so that context variables (``contextvars``) of a job do not affect the next job."""

from contextvars import copy_context
from typing import Any

from core.middleware.execution import Execution, Layer, Proceed


class OwnContext(Layer):
    """Runs an attempt in a copy of its thread's context, so that the thread's context never changes."""

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers in a copy of the thread's context.

        The copy includes structlog's bound variables and the context of ``decimal``.
        """
        return copy_context().run(proceed, execution)
