"""Ends each child process that a job has forked, when the child returns from the job's function. The run belongs to the
parent.
"""

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

from core import forks
from core.middleware.execution import Execution, Layer, Proceed
from core.observability.events import ProcessChildEnded, emit


class ForkedChildren(Layer):
    """Ends a forked child. Otherwise the child would record the run's outcome and continue as a worker's thread."""

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the inner layers, and end a forked child that returns from the job."""
        try:
            outcome = proceed(execution)
        except BaseException as error:
            if forks.is_child():
                leave(error)
            raise
        if forks.is_child():
            leave()
        return outcome


def leave(error: BaseException | None = None) -> NoReturn:
    """End this process as Python would: with status 0, with the status of a SystemExit, or with status 1 and a
    traceback.
    """
    status = error.code if isinstance(error, SystemExit) else error
    if error is not None and not isinstance(error, SystemExit):
        emit(ProcessChildEnded(os.getpid(), type(error).__name__), error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # the stream is missing or closed
            stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
