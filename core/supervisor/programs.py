"""The programs that a supervisor keeps running, and the signals that wake it.

*Signals raise no exceptions:* SIGINT, SIGTERM and SIGHUP are counted and wake the supervisor's loop, so no exception
can occur between starting a process and recording it. *Sessions:* every command leads its own session. So the
terminal's Ctrl-C reaches only the supervisor, and the children of a dead program are killed with its group.
"""

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, Self

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
#: How long to wait for a killed process, which may never end if it is in an uninterruptible system call.
KILLED_SECONDS = 5.0

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Program(Protocol):
    """A program that can be kept running: a ``Command``, or an embedded server."""

    name: str

    @property
    def pid(self) -> int | None:
        """The id of the leader of the program's process group; None before the start."""

    def start(self) -> None:
        """Start the program. Return when it is ready."""

    def is_running(self) -> bool:
        """Return whether the program is alive."""


class Signals:
    """Counts the signals that ask this process to stop. These signals, and the ends of children, wake the loop. Use
    this class only in the main thread.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._interrupting = False
        self._previous: dict[int, Any] = {}
        self._previous_wakeup = -1
        self._reader, self._writer = socket.socketpair()

    def __enter__(self) -> Self:
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._previous = {number: signal.signal(number, self._handle) for number in (*STOPPING, signal.SIGCHLD)}
        self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGCHLD:
            return
        self.asked += 1
        if self._interrupting:
            self._interrupting = False
            raise KeyboardInterrupt

    def wait(self, timeout_seconds: float | None, sockets: Sequence[socket.socket] = ()) -> None:
        """Wait for a signal, or until one of ``sockets`` is readable, at most for the time-out."""
        select.select([self._reader, *sockets], [], [], timeout_seconds)
        with suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal to stop raise KeyboardInterrupt in the block. The block must clean up after itself."""
        if self.asked:
            raise KeyboardInterrupt
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False


@dataclass(slots=True)
class Command:
    """A command line that is run in its own session. Its output goes to this process's standard output and error."""

    name: str
    words: Sequence[str]
    environ: Mapping[str, str]
    #: Whether the program is not started again after an exit with status 0.
    may_finish: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        """The id of the leader of the program's process group."""
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """The exit status, or the negative number of the signal that ended the program; None while the program is
        running.
        """
        return self._process.returncode if self._process else None

    def start(self) -> None:
        """Start the program. Raises OSError if it cannot be started."""
        self._process = subprocess.Popen(
            list(self.words), env=dict(self.environ), stdin=subprocess.DEVNULL, start_new_session=True
        )

    def is_running(self) -> bool:
        """Return whether the program is alive."""
        return self._process is not None and self._process.poll() is None

    def ask_to_end(self) -> None:
        """Signal only the leader of the process group. The leader ends its children.

        Dramatiq's worker treats a second SIGTERM as a kill.
        """
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the processes of the program's group that are left, if there are any."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):  # macOS raises PermissionError for a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_SECONDS)


@dataclass(slots=True)
class Kept:
    """A program that is kept running, with the time at which to start it again."""

    program: Program
    farewell: signal.Signals
    rank: int
    was_running: bool = False
    pause_seconds: float = FIRST_PAUSE_SECONDS
    started_at: float = 0.0
    due_at: float = 0.0
    is_done: bool = False

    def take_over(self, other: "Kept") -> None:
        """Keep the program of ``other`` running from now on, instead of this program."""
        self.program, self.was_running, self.started_at = other.program, other.was_running, other.started_at
        self.due_at, self.pause_seconds = other.due_at, other.pause_seconds


def in_words(status: int | None) -> str:
    """Return an exit status as text for people."""
    if status is not None and status < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return f"status {status}"
