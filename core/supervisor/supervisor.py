"""Keeps programs running, starts again those that die, and leaves no process behind.

Three things decide how it is done. *Signals are facts, not exceptions:* SIGINT, SIGTERM and SIGHUP are counted and wake
the one loop there is, so none can arrive between starting a process and knowing of it. *Sessions:* every program is
the leader of its own, so that the terminal's Ctrl-C reaches the supervisor alone, and what a dead program leaves behind
is killed with its group. *The guard:* ``guard_process.py`` ends them all if this process is killed outright.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

logger = logging.getLogger(__name__)

GUARD = Path(__file__).with_name("guard_process.py")

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
#: Whoever lived longer than this is started again after the first pause.
HEALTHY_SECONDS = 60.0
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


class Guard:
    """The process that ends all others if this one is killed."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", str(GUARD)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def watch(self, program: Program, farewell: signal.Signals = signal.SIGTERM, *, rank: int = 0) -> None:
        """End ``program`` with ``farewell`` if we die; higher ranks end after lower ones."""
        if program.pid is not None:
            self._tell(f"+ {program.pid} {farewell.value} {rank}")

    def forget(self, program: Program) -> None:
        """It has ended."""
        if program.pid is not None:
            self._tell(f"- {program.pid}")

    def dismiss(self) -> None:
        """End the guard; what it still knows of, it ends first."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            print(line, file=self._process.stdin, flush=True)
        except OSError as error:
            logger.warning("guard.lost: %s; if this process is killed, others may stay", error)


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


class Supervisor:
    """Keeps programs running until it is told to stop."""

    def __init__(self, signals: Signals, guard: Guard, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._signals = signals
        self._guard = guard
        self._monotonic = monotonic
        self._kept: list[Kept] = []

    def start(self, program: Program, farewell: signal.Signals = signal.SIGTERM, *, rank: int = 0) -> None:
        """Start ``program`` and keep it running. What keeps it from starting this first time is raised."""
        kept = Kept(program, farewell, rank)
        self._start(kept)
        self._kept.append(kept)

    def run(self, command: Command) -> int:
        """Run ``command`` once, to its end or until we are to stop; return its status."""
        command.start()
        self._guard.watch(command)
        while command.is_running() and not self._signals.asked:
            self._signals.wait(None)
        self._end([command], grace_seconds=KILLED_SECONDS)
        return command.status if command.status is not None else 1

    def keep_running(self) -> None:
        """Start again what dies, until a signal asks to stop."""
        while not self._signals.asked:
            pauses = self._attend()
            if not self._signals.asked:
                self._wait(min(pauses, default=None))

    def stop(self, grace_seconds: float) -> None:
        """End all commands: in order within the grace, by force after it or when asked once more."""
        self._end(self._commands(), grace_seconds)

    def _attend(self) -> list[float]:
        """See to every program; return after how many seconds to look again, as far as nothing wakes us."""
        return [pause for kept in self._kept if (pause := self._look_after(kept)) is not None]

    def _wait(self, timeout_seconds: float | None) -> None:
        self._signals.wait(timeout_seconds)

    def _commands(self) -> list[Command]:
        return [kept.program for kept in self._kept if isinstance(kept.program, Command)]

    def _look_after(self, kept: Kept) -> float | None:
        """See to one program; return after how many seconds it wants to be looked at again, if by itself."""
        if kept.is_done or kept.program.is_running():
            return None
        now = self._monotonic()
        if kept.was_running and not self._bury(kept, now):
            return None
        if kept.due_at > now:
            return kept.due_at - now
        try:
            self._start(kept)
        except KeyboardInterrupt:
            return None
        except Exception as error:  # noqa: BLE001 — it could not be started, whyever; it will be tried again
            self._postpone(kept, f"could not be started ({error})", self._monotonic())
            return kept.due_at - self._monotonic()
        return None

    def _start(self, kept: Kept) -> None:
        if isinstance(kept.program, Command):
            kept.program.start()
        else:
            with self._signals.interrupting():
                kept.program.start()
        kept.was_running, kept.started_at = True, self._monotonic()
        self._guard.watch(kept.program, kept.farewell, rank=kept.rank)

    def _bury(self, kept: Kept, now: float) -> bool:
        """Clear away what is left of it; return whether it is to be started again."""
        kept.was_running = False
        self._guard.forget(kept.program)
        ended = "ended"
        if isinstance(kept.program, Command):
            kept.program.kill()
            ended = f"ended ({in_words(kept.program.status)})"
            if kept.program.may_finish and kept.program.status == 0:
                kept.is_done = True
                logger.info("supervisor.finished name=%s", kept.program.name)
                return False
        if now - kept.started_at > HEALTHY_SECONDS:
            kept.pause_seconds = FIRST_PAUSE_SECONDS
        self._postpone(kept, ended, now)
        return True

    def _postpone(self, kept: Kept, why: str, now: float) -> None:
        logger.warning(
            "supervisor.restarting name=%s: it %s; again in %.0f s", kept.program.name, why, kept.pause_seconds
        )
        kept.due_at = now + kept.pause_seconds
        kept.pause_seconds = min(kept.pause_seconds * 2, LONGEST_PAUSE_SECONDS)

    def _end(self, commands: Sequence[Command], grace_seconds: float) -> None:
        for command in commands:
            if command.is_running():
                command.ask_to_end()
        deadline, asked = self._monotonic() + grace_seconds, self._signals.asked
        while any(command.is_running() for command in commands):
            remaining = deadline - self._monotonic()
            if remaining <= 0 or self._signals.asked > asked:
                logger.warning("supervisor.killing: %s", ", ".join(c.name for c in commands if c.is_running()))
                break
            self._signals.wait(remaining)
        for command in commands:
            command.kill()
            self._guard.forget(command)


def in_words(status: int | None) -> str:
    """An exit status for people."""
    if status is not None and status < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return f"status {status}"
