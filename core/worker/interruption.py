"""Interrupts jobs from another thread. The class of the exception that is raised in the job's thread is the reason.

One watching thread per process interrupts jobs that run too long. At the soft limit, it cancels the job's statement in
PostgreSQL and raises TimeLimitExceeded in the job's thread. At the hard limit, it calls ``on_hard``, which ends the
process. For an attempt of a cancelled run, ``interrupt`` does the same as at the soft limit, but raises Cancelled. Then
the hard limit is at most ``LEAVE_SECONDS`` away. For an attempt whose lease is lost, ``interrupt`` raises AttemptLost
and closes the attempt's connection, so that PostgreSQL frees the attempt's locks.

A watch takes the same lock when it raises an exception and when it ends. Therefore an exception cannot reach a thread
that has left ``Watch.hold``. A statement is cancelled over another connection to PostgreSQL, which may hang. So this is
done in a separate thread, for which the end of the job waits a short time.

Python discards an exception that is raised in the callback of a weak reference or in a finaliser, and reports it to
``sys.unraisablehook``. Rota sets a hook there that notes discarded interruptions, and the watch raises them again.
"""

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

from core.errors import AttemptLost, Cancelled, Interrupted, TimeLimitExceeded
from core.observability.events import LimitNotEnforced, emit

FOREVER = float("inf")
#: After the soft limit, a watch checks at this interval whether Python has discarded its interruption.
LOOK_AGAIN_SECONDS = 0.2
#: The longest wait, at the end of a job, until its statement has been cancelled.
CANCEL_SECONDS = 2.0
#: The function of a cancelled run has this many seconds to return before its process ends.
LEAVE_SECONDS = 30.0
T = TypeVar("T")


def nothing() -> None:
    """Do nothing."""


@dataclass(slots=True, eq=False)
class Watch:
    """A watch over one job. Times are monotonic seconds."""

    thread_id: int
    soft_at: float
    hard_at: float
    on_soft: Callable[[], None]
    on_hard: Callable[[], None]
    #: Closes the connection of an attempt that is lost. Must not wait.
    on_lost: Callable[[], None] = nothing
    #: The token of the attempt's lease, if the attempt has a lease.
    token: int | None = None
    #: The reason for the interruption, as the class of its exception; None if the job was not interrupted.
    cause: type[Interrupted] | None = None
    lost_at: float | None = None
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    look_again_at: float = FOREVER
    _cancelling: threading.Thread | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the lease of the attempt is lost."""
        return self.cause is AttemptLost

    @property
    def may_not_commit(self) -> bool:
        """Whether the attempt can commit nothing more: its lease is lost, or its run was cancelled."""
        return self.cause in (AttemptLost, Cancelled)

    @property
    def next_at(self) -> float:
        return min(self.hard_at, self.look_again_at) if self.cause else self.soft_at

    def next_after(self, now: float) -> float:
        """Return the next time after ``now`` at which the watch must act."""
        if self.next_at > now:
            return self.next_at
        if self.cause and self.hard_at <= now:
            return FOREVER
        return min(self.hard_at, now + LOOK_AGAIN_SECONDS)

    @property
    def is_cancelling(self) -> bool:
        """Whether the job's statement is still being cancelled. A late cancel could hit a statement of another job."""
        return self._cancelling is not None and self._cancelling.is_alive()

    def hold(self, body: Callable[[], T]) -> T:
        """Call ``body`` under watch, and return what it returns.

        This is not a context manager: the exception could arrive at the first step of ``__exit__``, and the other steps
        of ``__exit__`` would not run. In this method all steps are in one frame, and no step outside ``try`` calls
        anything.
        """
        try:
            _watcher.add(self)
            return body()
        finally:
            try:
                _watcher.remove(self)
            except Interrupted:  # it was raised during the removal, and cannot be raised a second time
                _watcher.remove(self)
                raise
            finally:
                if self._cancelling is not None:
                    self._cancelling.join(CANCEL_SECONDS)

    def enforce(self) -> None:
        """Enforce the limits that the job has exceeded, unless it has ended."""
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
        """Interrupt the job for ``cause``.

        Return False if the job has ended or lost its lease, or was interrupted for the same cause before.
        """
        with self.lock:
            if self.is_over or self.is_lost or self.cause is cause:
                return False
            self._stop(cause)
            now = time.monotonic()
            self.look_again_at = now + LOOK_AGAIN_SECONDS
            if cause is Cancelled:
                self.hard_at = min(self.hard_at, now + LEAVE_SECONDS)
            return True

    def _stop(self, cause: type[Interrupted]) -> None:
        self.cause = cause
        self._raise(cause)
        if cause is AttemptLost:
            self.lost_at = time.monotonic()
            _attempt(self.on_lost)
        else:
            _attempt(self._begin_to_cancel)  # the machine may refuse another thread

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
        """End the watch when the job ends. Withdraw an exception that has not been raised in the job's thread yet."""
        with self.lock:
            self.is_over = True
            if self.cause:
                withdraw_exception(self.thread_id)


@dataclass(slots=True)
class Watcher:
    """The watching thread, with all its watches."""

    _watches: set[Watch] = field(default_factory=set)
    #: The lock of ``_changed``. A job's thread takes it directly: this runs no Python code that could be interrupted.
    _lock: Any = field(default_factory=threading.RLock)
    _changed: threading.Condition = field(init=False)
    _wakes_at: float = FOREVER
    _thread: threading.Thread | None = None
    #: The time at which each thread left its last job, in monotonic seconds.
    left_at: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._changed = threading.Condition(self._lock)

    @property
    def threads(self) -> set[int]:
        """The threads that are in a job whose lease is not lost."""
        with self._changed:
            return {watch.thread_id for watch in self._watches if not watch.is_lost}

    @property
    def lost_since(self) -> dict[int, float]:
        """For each thread in a lost attempt, the time of the loss, in monotonic seconds."""
        with self._changed:
            return {watch.thread_id: watch.lost_at for watch in self._watches if watch.lost_at is not None}

    def add(self, watch: Watch) -> None:
        with self._lock:
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
        """Start the watching thread before the first job, so that a failure to start it is not counted for a job."""
        with self._changed:
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="rota-limits", daemon=True)
            thread.start()  # if the machine refuses it, the next job tries again
            self._thread = thread
            _notice_swallowed()

    def remove(self, watch: Watch) -> None:
        watch.end()
        self.left_at[watch.thread_id] = time.monotonic()
        with self._lock:
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
    except Exception as error:  # noqa: BLE001 — the watching thread must not end
        emit(LimitNotEnforced(), error)


#: The threads in which Python has discarded an interruption. There is no lock, since finalisers change this set.
_swallowed: set[int] = set()


def _notice_swallowed() -> None:
    """Install a hook that notes discarded interruptions, and passes all other errors to the previous hook."""
    former = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, Interrupted):
            _swallowed.add(threading.get_ident())
        else:
            former(unraisable)

    sys.unraisablehook = hook


_watcher = Watcher()


def start() -> None:
    """Start watching, before the first job. Raises RuntimeError if no thread can be started."""
    _watcher.start()


def interrupt(tokens: Collection[int], cause: type[Interrupted]) -> int:
    """Interrupt the attempts whose leases have these tokens, for ``cause``. Return the number of these attempts."""
    return _watcher.interrupt(tokens, cause)


def threads_in_jobs() -> set[int]:
    """Return the threads of this process that are in a job, without those whose attempt is lost."""
    return _watcher.threads


def outside_since() -> dict[int, float]:
    """Return the time, in monotonic seconds, at which each thread left its last job or lost its attempt."""
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
    """Return a watch of this thread. Call its ``hold`` with the function to watch. The limits are counted from now."""
    now = time.monotonic()
    soft_at, hard_at = now + soft.total_seconds(), now + hard.total_seconds()
    return Watch(threading.get_ident(), soft_at, hard_at, on_soft, on_hard, on_lost, token)


def place_of(thread: int) -> str:
    """Return where a thread is in the code, without any values."""
    frame: FrameType | None = sys._current_frames().get(thread)
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else "an unknown place"


def raise_in_thread(thread_id: int, exception: type[BaseException]) -> None:
    """Raise ``exception`` in a thread the next time it runs Python code. A call into C is not interrupted."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(exception))


def withdraw_exception(thread_id: int) -> None:
    """Withdraw an exception that was set and has not been raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), None)
