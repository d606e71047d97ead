"""Asks for a replacement of this process after many messages or at high memory use, to free leaked memory.

Under ``rota worker`` and ``rota up``, the supervisor starts a replacement, and this process stops taking messages when
the replacement is working (``core/supervisor/``). Under ``dramatiq core.main --processes 1``, Dramatiq restarts itself
when this process has finished its messages. With several processes, Dramatiq can only restart all of them together, and
all of them would wait for the longest running job. In that case this middleware only logs a warning.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import psutil
from dramatiq.broker import Broker, MessageProxy
from dramatiq.cli import make_argument_parser
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core.observability import metrics
from core.observability.events import ProcessNotRecycled, ProcessRecycling, emit
from core.supervisor import worker_channel
from core.supervisor.worker_channel import WorkerChannel

LOOK_EVERY_SECONDS = 1.0
DRAINED_EVERY_SECONDS = 0.05
MEBIBYTE = 2**20
#: Each process raises its limits by a random share, at most by this share, so that processes that were started together
#: do not end together.
MOST_SPREAD = 0.2


@dataclass(frozen=True)
class RecyclingLimits:
    """The limits after which a process is replaced. 0 means no limit."""

    messages: int
    memory_mb: int
    least_seconds: float
    spread: float = field(default_factory=lambda: 1 + random.uniform(0, MOST_SPREAD))

    @property
    def are_none(self) -> bool:
        """Whether there is no limit."""
        return not self.messages and not self.memory_mb

    def exceeded(self, messages: int, seconds: float, memory: Callable[[], int]) -> str:
        """Return the limit that was exceeded, ``"messages"`` or ``"memory"``, or an empty text.

        ``memory`` returns the used bytes. It is called only if it is needed.
        """
        if seconds < self.least_seconds * self.spread:
            return ""
        if self.messages and messages >= self.messages * self.spread:
            return "messages"
        if self.memory_mb and memory() > self.memory_mb * MEBIBYTE:
            return "memory"
        return ""


class Recycling(Middleware):
    """Counts messages, checks the memory every second, and asks to be replaced."""

    def __init__(self, limits: RecyclingLimits) -> None:
        self._limits = limits
        self._count = count(1)
        self._messages = 0
        self._stopping = threading.Event()

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Start counting, and tell the supervisor that this process is working."""
        supervisor = worker_channel.to_supervisor()
        if supervisor is not None:
            supervisor.say(worker_channel.READY)
        if not self._limits.are_none:
            threading.Thread(target=self._run, args=(broker, supervisor), daemon=True, name="rota-age").start()

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Count the message."""
        self._messages = next(self._count)

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Stop checking, since the process ends."""
        self._stopping.set()

    def _run(self, broker: Any, supervisor: WorkerChannel | None) -> None:
        began, process = time.monotonic(), psutil.Process()
        while not self._stopping.wait(LOOK_EVERY_SECONDS):
            reason = self._limits.exceeded(self._messages, time.monotonic() - began, lambda: process.memory_info().rss)
            if reason:
                try:
                    self._leave(broker, supervisor, reason)
                except Exception as error:  # noqa: BLE001 — the process continues without a replacement
                    emit(ProcessNotRecycled("this process is not replaced, and continues"), error)
                return

    def _leave(self, broker: Any, supervisor: WorkerChannel | None, reason: str) -> None:
        if supervisor is None and not is_only_process():
            emit(ProcessNotRecycled(f"{reason}: Dramatiq would end its other processes too; use `rota worker`"))
            return
        emit(ProcessRecycling(reason, self._messages))
        metrics.recycled(reason)
        if supervisor is None:
            if self._drained(broker):
                os.kill(os.getppid(), signal.SIGHUP)
            return
        supervisor.say(worker_channel.RETIRE)
        while not supervisor.hears(worker_channel.GO, within_seconds=LOOK_EVERY_SECONDS):
            if self._stopping.is_set():
                return
        if self._drained(broker):
            supervisor.say(worker_channel.DONE)

    def _drained(self, broker: Any) -> bool:
        """Stop taking messages, and wait until all taken messages have ended. Return False if the process must stop."""
        broker.drain()
        while not broker.is_drained:
            if self._stopping.wait(DRAINED_EVERY_SECONDS):
                return False
        return not self._stopping.is_set()


def is_only_process() -> bool:
    """Return whether the ``dramatiq`` command that runs this process was started with ``--processes 1``."""
    return bool(make_argument_parser().parse_args().processes == 1)
