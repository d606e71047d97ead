"""Interruption: a job is stopped from outside, and the class of what is raised in its thread says why.

One watching thread per process interrupts what runs too long. At the soft limit the job's statement is cancelled in
PostgreSQL and TimeLimitExceeded is raised in its thread; at the hard limit the caller's last resort is called, in the
watching thread. An attempt whose lease is lost is interrupted at once with AttemptLost, by ``interrupt``, and its
connection is closed: nothing that it holds is left to wait for. Raising happens under the watch's own lock, which
ends the watch too, so it cannot reach a thread that has left ``Watch.hold``. Cancelling takes a connection to
PostgreSQL, which may hang: it has a thread of its own, for which the job's end waits a little while.

Python swallows what is raised within a weak reference's callback or a finaliser, and says so to ``sys.unraisablehook``;
there an interruption is noticed that got lost, and is raised again.
"""

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from core.errors import AttemptLost, Interrupted, TimeLimitExceeded
from core.observability.events import LimitNotEnforced, emit

FOREVER = float("inf")
#: How often to look, after a soft limit, whether its interruption was swallowed.
LOOK_AGAIN_SECONDS = 0.2
#: How long the end of a job waits for its statement to be cancelled.
CANCEL_SECONDS = 2.0
T = TypeVar("T")


def nothing() -> None:
    """Do nothing."""


@dataclass(slots=True, eq=False)
class Watch:
    """One job under watch; times are monotonic seconds."""

    thread_id: int
    soft_at: float
    hard_at: float
    on_soft: Callable[[], None]
    on_hard: Callable[[], None]
    #: Closes the connection of an attempt that is lost. Must not wait.
    on_lost: Callable[[], None] = nothing
    #: The token of the attempt's lease, if it has one.
    token: int | None = None
    #: Why it was interrupted, so that an error can be told for what it is; None: it was not.
    cause: type[Interrupted] | None = None
    lost_at: float | None = None
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    look_again_at: float = FOREVER
    _cancelling: threading.Thread | None = None

    @property
    def is_lost(self) -> bool:
        """Whether its lease is lost."""
        return self.cause is AttemptLost

    @property
    def next_at(self) -> float:
        return min(self.hard_at, self.look_again_at) if self.cause else self.soft_at

    def next_after(self, now: float) -> float:
        """The next time at which the watch must act, after ``now``."""
        if self.next_at > now:
            return self.next_at
        if self.cause and self.hard_at <= now:
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
            except Interrupted:  # it arrived just here, and comes only once
                _watcher.remove(self)
                raise
            finally:
                if self._cancelling is not None:
                    self._cancelling.join(CANCEL_SECONDS)

    def enforce(self) -> None:
        """Enforce the limits that have passed, unless the job has ended."""
        with self.lock:
            if self.is_over:
                return
            now = time.monotonic()
            if self.cause is None:
                self._stop(TimeLimitExceeded)
            elif now >= self.hard_at:
                self.hard_at = self.look_again_at = FOREVER
                _attempt(self.on_hard)
                return
            elif self.thread_id in _swallowed:
                self._raise(self.cause)
            self.look_again_at = now + LOOK_AGAIN_SECONDS

    def interrupt(self, cause: type[Interrupted]) -> bool:
        """Interrupt the job for ``cause``; False if it has ended, was so interrupted before, or has lost its lease."""
        with self.lock:
            if self.is_over or self.is_lost or self.cause is cause:
                return False
            self._stop(cause)
            self.look_again_at = time.monotonic() + LOOK_AGAIN_SECONDS
            return True

    def _stop(self, cause: type[Interrupted]) -> None:
        self.cause = cause
        self._raise(cause)
        if cause is AttemptLost:
            self.lost_at = time.monotonic()
            _attempt(self.on_lost)
        else:
            _attempt(self._begin_to_cancel)  # there may be no thread to be had

    def _raise(self, cause: type[Interrupted]) -> None:
        _swallowed.discard(self.thread_id)
        raise_in_thread(self.thread_id, cause)

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
            if self.cause:
                withdraw_exception(self.thread_id)


@dataclass(slots=True)
class Watcher:
    """The watching thread and its watches."""

    _watches: set[Watch] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _wakes_at: float = FOREVER
    _thread: threading.Thread | None = None
    #: When each thread left its last job, in monotonic seconds.
    left_at: dict[int, float] = field(default_factory=dict)

    @property
    def threads(self) -> set[int]:
        """Those that are in a job, and may be."""
        with self._changed:
            return {watch.thread_id for watch in self._watches if not watch.is_lost}

    @property
    def lost_since(self) -> dict[int, float]:
        """Since when each thread is in an attempt that is lost."""
        with self._changed:
            return {watch.thread_id: watch.lost_at for watch in self._watches if watch.lost_at is not None}

    def add(self, watch: Watch) -> None:
        with self._changed:
            self._watches.add(watch)
            self._start()
            self._wake(watch)

    def interrupt(self, tokens: Collection[int], cause: type[Interrupted]) -> int:
        with self._changed:
            found = [watch for watch in self._watches if watch.token in tokens]
        interrupted = [watch for watch in found if watch.interrupt(cause)]
        with self._changed:
            for watch in interrupted:
                self._wake(watch)
        return len(interrupted)

    def _wake(self, watch: Watch) -> None:
        if watch.next_at < self._wakes_at:  # usually false: the watcher's next wake-up is already early enough
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
        if issubclass(unraisable.exc_type, Interrupted):
            _swallowed.add(threading.get_ident())
        else:
            former(unraisable)

    sys.unraisablehook = hook


_watcher = Watcher()


def start() -> None:
    """Begin to watch, before the first job. Raises RuntimeError where the machine has no thread to give."""
    _watcher.start()


def interrupt(tokens: Collection[int], cause: type[Interrupted]) -> int:
    """Interrupt the attempts with these leases, told by their tokens, for ``cause``; return how many were."""
    return _watcher.interrupt(tokens, cause)


def threads_in_jobs() -> set[int]:
    """The threads of this process that are in a job; not those in an attempt that is lost and does not end."""
    return _watcher.threads


def outside_since() -> dict[int, float]:
    """When each thread left its last job, or lost the attempt that it is in, in monotonic seconds."""
    return {**_watcher.left_at, **_watcher.lost_since}


def limited(
    soft: timedelta,
    hard: timedelta,
    *,
    on_soft: Callable[[], None],
    on_hard: Callable[[], None],
    on_lost: Callable[[], None] = nothing,
    token: int | None = None,
) -> Watch:
    """A watch over this thread, for what is then called through ``hold``. The limits count from here."""
    now = time.monotonic()
    soft_at, hard_at = now + soft.total_seconds(), now + hard.total_seconds()
    return Watch(threading.get_ident(), soft_at, hard_at, on_soft, on_hard, on_lost, token)


def raise_in_thread(thread_id: int, exception: type[BaseException]) -> None:
    """Raise ``exception`` in a thread the next time it runs Python code; a call into C is not interrupted."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(exception))


def withdraw_exception(thread_id: int) -> None:
    """Take back an exception that was set and not yet raised."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), None)
