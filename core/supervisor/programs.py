"""What a supervisor keeps running, and the signals that wake it.

*Signals are facts, not exceptions:* SIGINT, SIGTERM and SIGHUP are counted and wake the one loop there is, so none can
arrive between starting a process and knowing of it. *Sessions:* every command is the leader of its own, so that the
terminal's Ctrl-C reaches the supervisor alone, and what a dead program leaves behind is killed with its group.
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
#: How long a killed process may take to disappear; one in an uninterruptible system call may never.
KILLED_SECONDS = 5.0

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Program(Protocol):
    """What can be kept running: a ``Command``, or an embedded server."""

    name: str

    @property
    def pid(self) -> int | None:
        """The leader of its process group, once it has been started."""

    def start(self) -> None:
        """Start it, and return when it is of use."""

    def is_running(self) -> bool:
        """Whether it is alive."""


class Signals:
    """Counts the requests to stop, and wakes the loop for them and for children that end. Main thread only."""

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
        """Wait for a signal, or for something to read from one of ``sockets``, at most for the time-out."""
        select.select([self._reader, *sockets], [], [], timeout_seconds)
        with suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within it a request to stop raises KeyboardInterrupt, for what takes long and cleans up after itself."""
        if self.asked:
            raise KeyboardInterrupt
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False


@dataclass(slots=True)
class Command:
    """A program of the command line, in a session of its own; its output goes where ours goes."""

    name: str
    words: Sequence[str]
    environ: Mapping[str, str]
    #: Whether ending with status 0 means that it is done.
    may_finish: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        """The leader of its group."""
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """How it ended: its exit status, or the negative number of a signal."""
        return self._process.returncode if self._process else None

    def start(self) -> None:
        """Start it. Raises OSError if it cannot be run."""
        self._process = subprocess.Popen(
            list(self.words), env=dict(self.environ), stdin=subprocess.DEVNULL, start_new_session=True
        )

    def is_running(self) -> bool:
        """Whether it is alive."""
        return self._process is not None and self._process.poll() is None

    def ask_to_end(self) -> None:
        """Ask its leader, which ends what it started itself: Dramatiq's worker takes a second SIGTERM for a kill."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End whatever is left of its group; does nothing if nothing is."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):  # macOS answers with the latter for a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_SECONDS)


@dataclass(slots=True)
class Kept:
    """A program that is kept running, and when to try again."""

    program: Program
    farewell: signal.Signals
    rank: int
    was_running: bool = False
    pause_seconds: float = FIRST_PAUSE_SECONDS
    started_at: float = 0.0
    due_at: float = 0.0
    is_done: bool = False

    def take_over(self, other: "Kept") -> None:
        """Keep the program of ``other`` running from now on, instead of this one's."""
        self.program, self.was_running, self.started_at = other.program, other.was_running, other.started_at
        self.due_at, self.pause_seconds = other.due_at, other.pause_seconds


def in_words(status: int | None) -> str:
    """An exit status for people."""
    if status is not None and status < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return f"status {status}"
