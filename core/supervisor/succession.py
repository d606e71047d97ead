"""Keeps workers running, and replaces one that asks for it without a gap; see ``worker_channel.py`` beside this.

One is succeeded at a time, since a start takes most of a processor for a second.
"""

import logging
import secrets
import signal
from dataclasses import dataclass, field, replace

from core.supervisor import worker_channel
from core.supervisor.supervisor import Command, Guard, Kept, Signals, Supervisor, in_words
from core.supervisor.worker_channel import Reception

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Worker(Command):
    """A worker process, which knows whom to call."""

    reception: Reception = field(kw_only=True)
    #: What it is called on the line; another with every start.
    alias: str = field(default="", init=False)

    def start(self) -> None:
        """Start it. Raises OSError if it cannot be run."""
        self.alias = secrets.token_hex(8)
        self.environ = {**self.environ, **self.reception.environ(self.alias)}
        Command.start(self)

    def another(self) -> "Worker":
        """One of the same kind, not yet started."""
        return replace(self)


class Succession(Supervisor):
    """A supervisor that can have its workers succeeded."""

    def __init__(self, signals: Signals, guard: Guard, reception: Reception) -> None:
        super().__init__(signals, guard)
        self._reception = reception
        #: Who wants a successor, and under which name; the first is being found one.
        self._tired: list[tuple[Kept, str]] = []
        self._successor: Kept | None = None
        self._leaving: list[Worker] = []

    def _wait(self, timeout_seconds: float | None) -> None:
        self._signals.wait(timeout_seconds, self._reception.sockets)

    def _commands(self) -> list[Command]:
        successors = [self._successor.program] if self._successor else []
        return [*super()._commands(), *(each for each in successors if isinstance(each, Command)), *self._leaving]

    def _attend(self) -> list[float]:
        for alias, word in self._reception.hear():
            self._hear(alias, word)
        self._bury_leavers()
        pause = self._find_successor()
        return [*super()._attend(), *([] if pause is None else [pause])]

    def _hear(self, alias: str, word: str) -> None:
        if word == worker_channel.TIRED:
            self._tired += [(kept, alias) for kept in self._kept if alias_of(kept) == alias]
        elif word == worker_channel.READY and self._successor is not None and alias_of(self._successor) == alias:
            self._succeed(*self._tired.pop(0), self._successor)
            self._successor = None
        elif word == worker_channel.DONE:
            for worker in self._leaving:
                if worker.alias == alias:
                    worker.ask_to_end()

    def _find_successor(self) -> float | None:
        """Have one ready for the first who wants it; return after how many seconds to look again, if by ourselves."""
        if not self._tired:
            return None
        kept, alias = self._tired[0]
        assert isinstance(kept.program, Worker)
        if self._successor is None:
            if alias_of(kept) != alias or not kept.program.is_running():  # it has died meanwhile, and is started again
                self._tired.pop(0)
                return 0
            self._successor = Kept(kept.program.another(), signal.SIGTERM, 0)
        elif not kept.program.is_running():
            self._succeed(*self._tired.pop(0), self._successor)
            self._successor = None
            return None
        return self._look_after(self._successor)

    def _succeed(self, kept: Kept, alias: str, successor: Kept) -> None:
        """The successor takes the place of the one that was tired, which leaves."""
        assert isinstance(kept.program, Worker)
        logger.info("worker.succeeded name=%s", kept.program.name)
        self._reception.say(alias, worker_channel.GO)
        self._leaving.append(kept.program)
        kept.program, kept.started_at = successor.program, successor.started_at
        kept.due_at, kept.pause_seconds = successor.due_at, successor.pause_seconds
        kept.was_running = successor.was_running

    def _bury_leavers(self) -> None:
        for worker in [each for each in self._leaving if not each.is_running()]:
            self._leaving.remove(worker)
            self._guard.forget(worker)
            worker.kill()
            if worker.status:
                logger.warning("worker.left name=%s: it ended (%s)", worker.name, in_words(worker.status))


def alias_of(kept: Kept) -> str:
    """The name on the line of what is kept running, if it has one."""
    return kept.program.alias if isinstance(kept.program, Worker) else ""
