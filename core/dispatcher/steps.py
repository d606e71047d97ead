"""Runs the steps of a pass. A step that fails does not stop the others."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import psycopg2
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from core import database
from core.observability.events import DispatcherStepFailed, emit

P = ParamSpec("P")
T = TypeVar("T")


class Steps:
    """Runs steps. Repeated failures of a step are logged once, until the step succeeds or fails in another way."""

    def __init__(self) -> None:
        self._failing: dict[str, str] = {}

    def take(self, name: str, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Run a step and return its result, or None if it fails, so that the next steps still run.

        Raises errors that end the connection, since the other steps need it.
        """
        try:
            answer = step(*args, **kwargs)
        except Exception as error:
            if is_connection_lost(error):
                raise
            self._say(name, error)
            return None
        self._failing.pop(name, None)
        return answer

    def _say(self, name: str, error: Exception) -> None:
        is_expected = isinstance(error, DBAPIError)
        what = database.brief(error) if is_expected else type(error).__name__
        if self._failing.get(name) != what:
            self._failing[name] = what
            emit(DispatcherStepFailed(name, what), None if is_expected else error)


def is_connection_lost(error: Exception) -> bool:
    """Return whether the connection to PostgreSQL is lost, or a new one cannot be opened."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    return isinstance(error, PoolTimeout | psycopg2.Error)
