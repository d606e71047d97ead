"""Keeps programs running: restarts programs that die or hang, and leaves no process behind.

Its parts are in the same folder: ``programs.py`` (the programs, and the signals that wake the loop), ``replacement.py``
(replaces a worker without a gap), ``silence.py`` (finds a worker that hangs) and ``guard.py`` (starts the process that
ends all others if the supervisor is killed).
"""

import signal
import time
from collections.abc import Callable, Sequence

from core.observability.events import (
    SupervisorFinished,
    SupervisorKilling,
    SupervisorRestarting,
    WorkerLeft,
    WorkerSilent,
    emit,
)
from core.supervisor import worker_channel
from core.supervisor.guard import Guard
from core.supervisor.programs import (
    FIRST_PAUSE_SECONDS,
    KILLED_SECONDS,
    LONGEST_PAUSE_SECONDS,
    Command,
    Kept,
    Program,
    Signals,
    in_words,
)
from core.supervisor.replacement import Replacements, Worker
from core.supervisor.silence import LOOK_SECONDS, Silence
from core.supervisor.worker_channel import ChannelServer

#: A program that ran for longer than this many seconds is restarted after the shortest pause.
HEALTHY_SECONDS = 60.0


class Supervisor:
    """Keeps programs running until it is told to stop, and replaces workers that ask for it."""

    def __init__(
        self,
        signals: Signals,
        guard: Guard,
        channel: ChannelServer,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._signals = signals
        self._guard = guard
        self._channel = channel
        self._monotonic = monotonic
        self._kept: list[Kept] = []
        self._replacements = Replacements(channel)
        self._silence = Silence(monotonic())

    def start(self, program: Program, farewell: signal.Signals = signal.SIGTERM, *, rank: int = 0) -> None:
        """Start ``program`` and keep it running. If this first start fails, raise its error."""
        kept = Kept(program, farewell, rank)
        self._start(kept)
        self._kept.append(kept)

    def run(self, command: Command) -> int:
        """Run ``command`` once, until it ends or a signal asks this process to stop. Return its status."""
        command.start()
        self._guard.watch(command)
        while command.is_running() and not self._signals.asked:
            self._signals.wait(None)
        self._end([command], grace_seconds=KILLED_SECONDS)
        return command.status if command.status is not None else 1

    def keep_running(self) -> None:
        """Restart programs that die and replace workers that ask for it, until a signal asks to stop."""
        while not self._signals.asked:
            pauses = self._attend()
            if not self._signals.asked:
                self._signals.wait(min(pauses, default=None), self._channel.sockets)

    def stop(self, grace_seconds: float) -> None:
        """End all commands: by SIGTERM first, and by SIGKILL after the grace or after another signal to stop."""
        kept = [each.program for each in self._kept if isinstance(each.program, Command)]
        self._end([*kept, *self._replacements.commands], grace_seconds)

    def _attend(self) -> list[float]:
        """Check every program. Return the seconds after which programs must be checked again, even without a signal."""
        for alias, word in self._channel.hear():
            self._silence.heard(alias)
            if word != worker_channel.ALIVE:
                self._replacements.hear(alias, word, self._kept)
        workers = self._workers()
        self._kill_silent(workers)
        self._clear_leavers()
        self._replacements.advance()
        starting = [self._replacements.starting] if self._replacements.starting else []
        pauses = [pause for kept in [*starting, *self._kept] if (pause := self._look_after(kept)) is not None]
        return [*pauses, *([LOOK_SECONDS] if workers else [])]

    def _workers(self) -> list[Worker]:
        kept = [each.program for each in self._kept if isinstance(each.program, Worker)]
        return [*kept, *self._replacements.workers]

    def _kill_silent(self, workers: Sequence[Worker]) -> None:
        silent = self._silence.look(workers, self._monotonic())
        if silent is not None:
            emit(WorkerSilent(silent.name))
            silent.kill()

    def _look_after(self, kept: Kept) -> float | None:
        """Check one program, and start it again if it has ended and is due.

        Return the seconds after which it must be checked again, or None if a signal will wake the loop.
        """
        if kept.is_done or kept.program.is_running():
            return None
        now = self._monotonic()
        if kept.was_running and not self._clear(kept, now):
            return None
        if kept.due_at > now:
            return kept.due_at - now
        try:
            self._start(kept)
        except KeyboardInterrupt:
            return None
        except Exception as error:  # noqa: BLE001 — after any error the start is tried again
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

    def _clear(self, kept: Kept, now: float) -> bool:
        """Clean up after a program that has ended. Return whether to start it again."""
        kept.was_running = False
        self._guard.forget(kept.program)
        ended = "ended"
        if isinstance(kept.program, Command):
            kept.program.kill()
            ended = f"ended ({in_words(kept.program.status)})"
            if kept.program.may_finish and kept.program.status == 0:
                kept.is_done = True
                emit(SupervisorFinished(kept.program.name))
                return False
        if now - kept.started_at > HEALTHY_SECONDS:
            kept.pause_seconds = FIRST_PAUSE_SECONDS
        self._postpone(kept, ended, now)
        return True

    def _clear_leavers(self) -> None:
        for worker in self._replacements.take_ended():
            self._guard.forget(worker)
            worker.kill()
            if worker.status:
                emit(WorkerLeft(worker.name, in_words(worker.status)))

    def _postpone(self, kept: Kept, why: str, now: float) -> None:
        emit(SupervisorRestarting(kept.program.name, why, kept.pause_seconds))
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
                emit(SupervisorKilling(", ".join(each.name for each in commands if each.is_running())))
                break
            self._signals.wait(remaining)
        for command in commands:
            command.kill()
            self._guard.forget(command)
