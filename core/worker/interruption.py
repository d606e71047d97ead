"""Time limits: one watching thread per process interrupts what runs too long.

At the soft limit the job's statement is cancelled in PostgreSQL and TimeLimitExceeded is raised in its thread; at the
hard limit the caller's last resort is called, in the watching thread. Raising happens under the watch's own lock, which
ends the watch too, so it cannot reach a thread that has left ``Watch.hold``. Cancelling takes a connection to
PostgreSQL, which may hang: it has a thread of its own, for which the job's end waits a little while.

Python swallows what is raised within a weak reference's callback or a finaliser, and says so to ``sys.unraisablehook``;
there an interruption is noticed that got lost, and is raised again.
"""

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from core.errors import TimeLimitExceeded
from core.observability.events import LimitNotEnforced, emit

FOREVER = float("inf")
#: How often to look, after a soft limit, whether its interruption was swallowed.
LOOK_AGAIN_SECONDS = 0.2
#: How long the end of a job waits for its statement to be cancelled.
CANCEL_SECONDS = 2.0
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Watch:
    """One job under watch; times are monotonic seconds."""

    thread_id: int
    soft_at: float
    hard_at: float
    on_soft: Callable[[], None]
    on_hard: Callable[[], None]
    #: Whether the soft limit has passed, so that an error can be told for what it is.
    exceeded: bool = False
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    look_again_at: float = FOREVER
    _cancelling: threading.Thread | None = None

    @property
    def next_at(self) -> float:
        return min(self.hard_at, self.look_again_at) if self.exceeded else self.soft_at

    def next_after(self, now: float) -> float:
        """When it is due next, once what is due ``now`` has been done."""
        if self.next_at > now:
            return self.next_at
        if self.exceeded and self.hard_at <= now:
            return FOREVER
        return min(self.hard_at, now + LOOK_AGAIN_SECONDS)

    @property
    def is_cancelling(self) -> bool:
        """Whether the job has ended and its statement is still being cancelled: that could strike another's."""
        return self._cancelling is not None and self._cancelling.is_alive()

    def hold(self, body: Callable[[], T]) -> T:
        """Call ``body`` under watch, and return what it returns.

        This is no context manager, since the exception can arrive at the very first step of an ``__exit__``, which
        then does nothing. Here all steps are in one frame, and those outside ``try`` call nothing.
        """
        try:
            _watcher.add(self)
            return body()
        finally:
            try:
                _watcher.remove(self)
            except TimeLimitExceeded:  # it arrived just here, and comes only once
                _watcher.remove(self)
                raise
            finally:
                if self._cancelling is not None:
                    self._cancelling.join(CANCEL_SECONDS)

    def enforce(self) -> None:
        """Do what is due, unless the job has ended."""
        with self.lock:
            if self.is_over:
                return
            now = time.monotonic()
            if not self.exceeded:
                self.exceeded = True
                self._interrupt()
                _attempt(self._begin_to_cancel)  # there may be no thread to be had
            elif now >= self.hard_at:
                self.hard_at = self.look_again_at = FOREVER
                _attempt(self.on_hard)
                return
            elif self.thread_id in _swallowed:
                self._interrupt()
            self.look_again_at = now + LOOK_AGAIN_SECONDS

    def _interrupt(self) -> None:
        _swallowed.discard(self.thread_id)
        raise_in_thread(self.thread_id, TimeLimitExceeded)

    def _begin_to_cancel(self) -> None:
        cancelling = threading.Thread(target=self._cancel, name="rota-cancel", daemon=True)
        cancelling.start()
        self._cancelling = cancelling

    def _cancel(self) -> None:
        if not self.is_over:
            _attempt(self.on_soft)

    def end(self) -> None:
        """The job has ended; an exception that has not reached it yet is taken back."""
        with self.lock:
            self.is_over = True
            if self.exceeded:
                withdraw_exception(self.thread_id)


@dataclass(slots=True)
class Watcher:
    """The watching thread and what it watches."""

    _watches: set[Watch] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _wakes_at: float = FOREVER
    _thread: threading.Thread | None = None
    #: When each thread left its last job, in monotonic seconds.
    left_at: dict[int, float] = field(default_factory=dict)

    @property
    def threads(self) -> set[int]:
        """Those that are in a job."""
        with self._changed:
            return {watch.thread_id for watch in self._watches}

    def add(self, watch: Watch) -> None:
        with self._changed:
            self._watches.add(watch)
            self._start()
            if watch.next_at < self._wakes_at:  # seldom: a job that ended early leaves its wake-up to the next
                self._wakes_at = watch.next_at
                self._changed.notify()

    def start(self) -> None:
        """Have the thread before the first job; it is not the job's fault if there is none to be had."""
        with self._changed:
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="rota-limits", daemon=True)
            thread.start()  # if there is none to be had, the next job tries again
            self._thread = thread
            _notice_swallowed()

    def remove(self, watch: Watch) -> None:
        watch.end()
        self.left_at[watch.thread_id] = time.monotonic()
        with self._changed:
            self._watches.discard(watch)

    def _run(self) -> None:
        while True:
            for watch in self._wait():
                _attempt(watch.enforce)

    def _wait(self) -> list[Watch]:
        with self._changed:
            self._changed.wait(self._pause())
            now = time.monotonic()
            due = [watch for watch in self._watches if watch.next_at <= now]
            if now >= self._wakes_at:
                self._wakes_at = min((watch.next_after(now) for watch in self._watches), default=FOREVER)
            return due

    def _pause(self) -> float | None:
        return None if self._wakes_at == FOREVER else max(self._wakes_at - time.monotonic(), 0)


def _attempt(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 — the watching thread outlives everything that it is asked to do
        emit(LimitNotEnforced(), error)


#: The threads in which Python has swallowed an interruption. Changed without a lock, as a finaliser must.
_swallowed: set[int] = set()


def _notice_swallowed() -> None:
    """Have Python say when it swallows an interruption; anything else goes where it went before."""
    former = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is TimeLimitExceeded:
            _swallowed.add(threading.get_ident())
        else:
            former(unraisable)

    sys.unraisablehook = hook


_watcher = Watcher()


def start() -> None:
    """Begin to watch, before the first job. Raises RuntimeError where the machine has no thread to give."""
    _watcher.start()


def threads_in_jobs() -> set[int]:
    """The threads of this process that are in a job."""
    return _watcher.threads


def outside_since() -> dict[int, float]:
    """When each thread left its last job, in monotonic seconds."""
    return _watcher.left_at.copy()


def limited(soft: timedelta, hard: timedelta, *, on_soft: Callable[[], None], on_hard: Callable[[], None]) -> Watch:
    """A watch over this thread, for what is then called through ``hold``. The limits count from here."""
    now = time.monotonic()
    return Watch(threading.get_ident(), now + soft.total_seconds(), now + hard.total_seconds(), on_soft, on_hard)


def raise_in_thread(thread_id: int, exception: type[BaseException]) -> None:
    """Raise ``exception`` in a thread the next time it runs Python code; a call into C is not interrupted."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(exception))


def withdraw_exception(thread_id: int) -> None:
    """Take back an exception that was set and not yet raised."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), None)
