"""Formats the tracebacks that are kept with attempts: without local variables, and without the frames of Rota that
called the job's function.
"""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from core.observability.lines import without_middle

#: The file and the name of the function that calls a job's function.
CALLER = (str(Path(__file__).with_name("executor.py")), "call")


def of_error(error: BaseException) -> str:
    """Return the traceback of ``error`` and of its causes, of bounded length. Never raises."""
    return formatted(lambda: _of_error(error), error)


def of_thread(thread_id: int) -> str | None:
    """Return the stack of a thread now, or None if the thread has ended. Never raises."""
    frame = sys._current_frames().get(thread_id)
    if frame is None:
        return None
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame))
    stack.reverse()
    return formatted(lambda: "Its thread stood here:\n" + "".join(without_own_start(stack).format()))


def formatted(text: Callable[[], str], error: BaseException | None = None) -> str:
    """Return the text without its middle if it is too long, or a note if it cannot be formatted."""
    try:
        return without_middle(text().rstrip("\n"))
    except BaseException as wrong:  # noqa: BLE001 — formatting calls methods of a job's classes, which may raise anything
        return f"{type(error).__name__} (its traceback cannot be formatted: {type(wrong).__name__})"


def _of_error(error: BaseException) -> str:
    told = traceback.TracebackException.from_exception(error)
    told.stack = without_own_start(told.stack)
    return "".join(told.format())


def without_own_start(stack: traceback.StackSummary) -> traceback.StackSummary:
    """Return ``stack`` from the job's own function on, or all of it if that function was not called."""
    called = [at for at, frame in enumerate(stack) if (frame.filename, frame.name) == CALLER]
    own = stack[called[-1] + 1 :] if called else []
    return traceback.StackSummary.from_list(own) if own else stack
