"""Calls plugins' middleware around runs. It cannot change a run's outcome, which only the job decides.

Plugins' middleware runs within the time limits, so the limits also apply to middleware that hangs. If middleware raises
an error, or swallows the job's error, the log names it. For a job without middleware, this layer costs one lookup in a
dictionary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import Any

from core import forks
from core.errors import Interrupted, TimeLimitExceeded
from core.jobs.middleware import Attempt, RunMiddleware
from core.jobs.registry import Registered
from core.middleware.execution import Execution, Layer, Proceed
from core.middleware.forked_children import ForkedChildren
from core.middleware.forked_children import leave as leave_child
from core.observability.events import MiddlewareFailed, emit
from core.plugins import loading
from core.worker.interruption import limited, nothing
from core.worker.last_resort import LastResort

#: The method ``ended`` of a middleware is interrupted after this time.
ENDED_SOFT = timedelta(seconds=5)
#: If ``ended`` has not returned after this time, the process ends.
ENDED_HARD = timedelta(seconds=60)


class PluginMiddleware(Layer):
    """Calls the middleware that plugins have registered for the job."""

    def __init__(self, last_resort: LastResort) -> None:
        self._last_resort = last_resort
        #: Ends a child process that the job's function has forked, before the child exits the context managers.
        self._children = ForkedChildren()

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Call the job's function within the context managers of plugins' middleware.

        The middleware that was registered first is the outermost.
        """
        registered = loading.current().middleware.get(execution.job.name)
        if not registered:
            return proceed(execution)
        assert execution.run is not None, "a session comes first"
        execution.attempt = Attempt(execution.job, execution.run)
        surrounding = Surrounding(execution, execution.attempt)
        return surrounding.call(registered, partial(self._children.around, proceed=proceed))

    def ended(self, execution: Execution, status: str) -> None:
        """Call ``ended`` of each middleware with the recorded state."""
        attempt = execution.attempt
        if attempt is None:
            return
        for each in loading.current().middleware.get(execution.job.name, ()):
            if type(each.middleware).ended is not RunMiddleware.ended:
                self._tell(each, attempt, status)
        if forks.is_child():  # a middleware has forked
            leave_child()

    def _tell(self, each: Registered, attempt: Attempt, status: str) -> None:
        give_up = partial(self._give_up, each)
        try:
            watch = limited(ENDED_SOFT, ENDED_HARD, on_soft=nothing, on_hard=give_up)
            copy_context().run(watch.hold, partial(each.middleware.ended, attempt, status))
        except TimeLimitExceeded:
            emit(MiddlewareFailed(each.plugin, each.name, f"its `ended` took longer than {ENDED_SOFT}"))
        except BaseException as error:  # noqa: BLE001 — the run has ended, and its outcome stays
            emit(MiddlewareFailed(each.plugin, each.name, "its `ended` raised; the run stays as it is"), error)

    def _give_up(self, each: Registered) -> None:
        why = MiddlewareFailed(each.plugin, each.name, f"its `ended` took longer than {ENDED_HARD}; the process ends")
        self._last_resort.end_process(why, self._last_resort.release_all)


class Surrounding:
    """The context managers of one attempt."""

    def __init__(self, execution: Execution, attempt: Attempt) -> None:
        self._execution = execution
        self._attempt = attempt
        self._entered: list[tuple[Registered, AbstractContextManager[object]]] = []

    def call(self, registered: Sequence[Registered], proceed: Proceed) -> Any:
        """Enter all context managers, call the inner layers, and exit all.

        Return the job's result or raise its error.
        """
        try:
            for each in registered:
                self._enter(each)
            self._attempt.result = proceed(self._execution)
        except BaseException as error:  # noqa: BLE001 — it is raised below, after each middleware has seen it
            self._attempt.exception = error
        for each, manager in reversed(self._entered):
            self._leave(each, manager)
        if self._attempt.exception is not None:
            raise self._attempt.exception
        return self._attempt.result

    def _enter(self, each: Registered) -> None:
        """Enter one middleware. If it raises an error, continue without it. An interruption ends the run."""
        self._execution.inside = f" in {each}"
        try:
            manager = each.middleware.around(self._attempt)
            manager.__enter__()
        except Interrupted:
            raise
        except BaseException as error:  # noqa: BLE001 — a plugin's fault is not the run's
            emit(
                MiddlewareFailed(each.plugin, each.name, "it could not be entered; the job continues without it"), error
            )
        else:
            self._entered.append((each, manager))
        self._execution.inside = ""

    def _leave(self, each: Registered, manager: AbstractContextManager[object]) -> None:
        """Exit one middleware. An error that it raises or swallows does not change the outcome."""
        error, self._execution.inside = self._attempt.exception, f" in {each}"
        try:
            is_swallowed = leave(manager, error)
        except BaseException as raised:  # noqa: BLE001 — the outcome stays
            if raised is not error:
                emit(MiddlewareFailed(each.plugin, each.name, "it could not be exited; the outcome stays"), raised)
        else:
            if error is not None and is_swallowed:
                emit(MiddlewareFailed(each.plugin, each.name, f"it swallowed {type(error).__name__}; the run fails"))
        self._execution.inside = ""


def leave(manager: AbstractContextManager[object], error: BaseException | None) -> bool | None:
    """Exit ``manager`` with the error that was raised within it, if there is one.

    Return whether ``manager`` swallowed the error.
    """
    if error is None:
        return manager.__exit__(None, None, None)
    return manager.__exit__(type(error), error, error.__traceback__)
