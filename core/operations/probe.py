"""Calls a function that may hang, such as a query to a frozen server. The caller does not hang with it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Probe(Generic[T]):
    """Calls ``look`` in a thread of its own, but never twice at the same time.

    An answer is reused for ``fresh_seconds``. While a call hangs, callers get its future, and no more threads are
    started. The thread is a daemon, so a hanging call does not delay the end of the process.
    """

    def __init__(self, name: str, look: Callable[[], T], *, fresh_seconds: float = 1.0) -> None:
        self._name = name
        self._look = look
        self._fresh_seconds = fresh_seconds
        self._lock = threading.Lock()
        self._answer: Future[T] | None = None
        self._answered_at = 0.0

    def ask(self) -> Future[T]:
        """Return the answer as a future, which may be pending for as long as ``look`` takes.

        If ``look`` raises an error, the future has this error.
        """
        with self._lock:
            if self._answer is None or self._is_old(self._answer):
                self._answer = Future()
                self._answer.set_running_or_notify_cancel()  # so that a caller that gives up cannot cancel the call
                threading.Thread(target=self._call, args=[self._answer], name=self._name, daemon=True).start()
            return self._answer

    def newest(self) -> Future[T]:
        """Return the newest answer as a future, however old the answer is. If there is none yet, ask."""
        return self._answer or self.ask()

    def _is_old(self, answer: "Future[T]") -> bool:
        return answer.done() and time.monotonic() - self._answered_at > self._fresh_seconds

    def _call(self, answer: "Future[T]") -> None:
        try:
            found = self._look()
        except BaseException as error:  # noqa: BLE001 — the caller gets it
            self._answered_at = time.monotonic()
            answer.set_exception(error)
        else:
            self._answered_at = time.monotonic()
            answer.set_result(found)
