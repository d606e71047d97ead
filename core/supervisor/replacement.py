"""Workers, and how one is replaced without a gap; ``worker_channel.py`` beside this has the words.

One is replaced at a time, since a start takes most of a processor for a second.
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
    #: How long it may show no life.
    silence_seconds: float = field(kw_only=True)
    #: Its name on the channel; another with every start.
    alias: str = field(default="", init=False)

    def start(self) -> None:
        """Start it. Raises OSError if it cannot be run."""
        self.alias = secrets.token_hex(8)
        self.environ = {**self.environ, **self.channel.environ(self.alias)}
        Command.start(self)

    def another(self) -> "Worker":
        """One of the same kind, not yet started."""
        return replace(self)


@dataclass(slots=True)
class Replacements:
    """Which workers want to be replaced, which is starting instead, and which are leaving."""

    channel: ChannelServer
    #: Each that asked, with the name under which it did; the first is being replaced.
    _asked: list[tuple[Kept, str]] = field(default_factory=list)
    starting: Kept | None = None
    leaving: list[Worker] = field(default_factory=list)

    @property
    def workers(self) -> list[Worker]:
        """The workers that run beside those that are kept running."""
        return [each for each in self.commands if isinstance(each, Worker)]

    @property
    def commands(self) -> list[Command]:
        """What runs beside what is kept running."""
        starting = [self.starting.program] if self.starting else []
        return [*(each for each in starting if isinstance(each, Command)), *self.leaving]

    def hear(self, alias: str, word: str, kept: Sequence[Kept]) -> None:
        """Deal with a word of a worker's."""
        if word == worker_channel.RETIRE:
            self._asked += [(each, alias) for each in kept if alias_of(each) == alias]
        elif word == worker_channel.READY and self.starting is not None and alias_of(self.starting) == alias:
            self._replace()
        elif word == worker_channel.DONE:
            for worker in self.leaving:
                if worker.alias == alias:
                    worker.ask_to_end()

    def advance(self) -> None:
        """See to the next replacement: what asked may have died meanwhile, and may have been started again."""
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
        """Those that have left since."""
        ended = [each for each in self.leaving if not each.is_running()]
        for worker in ended:
            self.leaving.remove(worker)
        return ended

    def _replace(self) -> None:
        """The replacement takes the place of the one that asked, which is told to leave."""
        (kept, alias), replacement = self._asked.pop(0), self.starting
        assert isinstance(kept.program, Worker)
        assert replacement is not None
        emit(WorkerReplaced(kept.program.name))
        self.channel.say(alias, worker_channel.GO)
        self.leaving.append(kept.program)
        kept.take_over(replacement)
        self.starting = None


def alias_of(kept: Kept) -> str:
    """The name on the channel of what is kept running, if it has one."""
    return kept.program.alias if isinstance(kept.program, Worker) else ""
