"""A new context for each attempt, so that context variables of a job do not affect the next (``contextvars``)."""

from contextvars import copy_context
from typing import Any

from core.middleware.execution import Execution, Layer, Proceed


class OwnContext(Layer):
    """Runs an attempt in a copy of its thread's context, so that the thread's context never changes."""

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Proceed in the copy. It includes structlog's bound variables and the context of ``decimal``."""
        return copy_context().run(proceed, execution)
