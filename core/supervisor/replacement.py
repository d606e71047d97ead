"""Replaces worker processes without a gap, with the protocol of ``worker_channel.py``.

One worker is replaced at a time, since the start of a worker takes about a second of CPU.
"""

import secrets
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from core.observability.events import WorkerReplaced, emit
from core.supervisor import worker_channel
from core.supervisor.programs import Command, Kept
from core.supervisor.worker_channel import ChannelServer


@dataclass(slots=True)
class Worker(Command):
    """A worker process, which has a channel to its supervisor."""

    channel: ChannelServer = field(kw_only=True)
    #: The worker is killed if it has not said ``alive`` for this long.
    silence_seconds: float = field(kw_only=True)
    #: The worker's name on the channel, which is new at every start.
    alias: str = field(default="", init=False)

    def start(self) -> None:
        """Start the worker. Raises OSError if it cannot be run."""
        self.alias = secrets.token_hex(8)
        self.environ = {**self.environ, **self.channel.environ(self.alias)}
        Command.start(self)

    def another(self) -> "Worker":
        """Return another worker with the same command, which is not started yet."""
        return replace(self)


@dataclass(slots=True)
class Replacements:
    """The workers that asked for a replacement, the replacement that is starting, and the workers that are leaving."""

    channel: ChannelServer
    #: Each worker that asked for a replacement, with its name on the channel at that time. The first of them is being
    #: replaced.
    _asked: list[tuple[Kept, str]] = field(default_factory=list)
    starting: Kept | None = None
    leaving: list[Worker] = field(default_factory=list)

    @property
    def workers(self) -> list[Worker]:
        """The workers that run in addition to those that are kept running: the replacement, and workers that leave."""
        return [each for each in self.commands if isinstance(each, Worker)]

    @property
    def commands(self) -> list[Command]:
        """The commands of these workers."""
        starting = [self.starting.program] if self.starting else []
        return [*(each for each in starting if isinstance(each, Command)), *self.leaving]

    def hear(self, alias: str, word: str, kept: Sequence[Kept]) -> None:
        """Handle a word that a worker said on its channel."""
        if word == worker_channel.RETIRE:
            self._asked += [(each, alias) for each in kept if alias_of(each) == alias]
        elif word == worker_channel.READY and self.starting is not None and alias_of(self.starting) == alias:
            self._replace()
        elif word == worker_channel.DONE:
            for worker in self.leaving:
                if worker.alias == alias:
                    worker.ask_to_end()

    def advance(self) -> None:
        """Start the next replacement. Skip workers that have died or were restarted since they asked."""
        while self._asked and self.starting is None:
            kept, alias = self._asked[0]
            if alias_of(kept) == alias and kept.program.is_running():
                assert isinstance(kept.program, Worker)
                self.starting = Kept(kept.program.another(), signal.SIGTERM, 0)
            else:
                self._asked.pop(0)
        if self.starting is not None and not self._asked[0][0].program.is_running():
            self._replace()

    def take_ended(self) -> list[Worker]:
        """Return the workers that have left since the last call, and forget them."""
        ended = [each for each in self.leaving if not each.is_running()]
        for worker in ended:
            self.leaving.remove(worker)
        return ended

    def _replace(self) -> None:
        """Put the replacement in the place of the worker that asked for it, and tell that worker to leave."""
        (kept, alias), replacement = self._asked.pop(0), self.starting
        assert isinstance(kept.program, Worker)
        assert replacement is not None
        emit(WorkerReplaced(kept.program.name))
        self.channel.say(alias, worker_channel.GO)
        self.leaving.append(kept.program)
        kept.take_over(replacement)
        self.starting = None


def alias_of(kept: Kept) -> str:
    """Return the channel name of a kept program, if it has one."""
    return kept.program.alias if isinstance(kept.program, Worker) else ""
