"""The broker of ``SCHEDULER_MODE=local``: nothing leaves the process.

Runs of the ledger come straight from there and need no broker. What passes through this one is the fast lane: messages
that jobs of this process send to jobs of this process, in memory, and lost with it.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.stub import StubBroker, _StubConsumer
from dramatiq.middleware import Middleware

from core.ledger.carrier import OutgoingMessage, OutgoingRun
from core.ledger.releases import Fleet
from core.transport.messages import RUN_ID, fast_message

logger = logging.getLogger(__name__)


class LocalBroker(StubBroker):
    """Dramatiq's queues in memory."""

    def __init__(self, middleware: Sequence[Middleware]) -> None:
        super().__init__([*middleware])
        self._is_draining = False

    @property
    def is_draining(self) -> bool:
        """Whether the process is to end: runs are taken from the ledger no longer."""
        return self._is_draining

    def drain(self) -> None:
        """Take nothing more from the ledger; messages in memory are still worked on."""
        self._is_draining = True

    @property
    def is_empty(self) -> bool:
        """Whether every message that was ever put on a queue has ended."""
        return not any(queue.unfinished_tasks for queue in self.queues.values())

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 100) -> Consumer:
        """What fetches from one of them."""
        return LocalConsumer(self.queues[queue_name], [], prefetch, timeout)


class LocalConsumer(_StubConsumer):
    """Fetches messages of the fast lane; runs of the ledger did not come through here, and are not acknowledged."""

    def ack(self, message: MessageProxy) -> None:
        """It is done."""
        if RUN_ID not in message.options:
            super().ack(message)

    def nack(self, message: MessageProxy) -> None:
        """It has failed for good, which the log has; nobody could look at a dead letter in memory."""
        self.ack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """The process ends: what has not begun is lost."""
        lost = Counter(message.actor_name for message in messages if RUN_ID not in message.options)
        for job, count in lost.items():
            logger.warning("message.lost job=%s messages=%s: the fast lane of local mode is in memory", job, count)


class LocalCarrier:
    """Stands where Redis would carry: runs stay in the ledger, the fast lane is in memory, nobody listens."""

    #: Runs stay in the ledger.
    carries = False

    def __init__(self, broker: LocalBroker) -> None:
        self._broker = broker

    def send(self, outgoing: Sequence[OutgoingRun]) -> None:
        """Leave runs to be taken from the ledger."""

    def post(self, outgoing: Sequence[OutgoingMessage]) -> None:
        """Put messages of the fast lane on their queues."""
        for each in outgoing:
            self._broker.enqueue(fast_message(each))

    def publish(self, channel: str, message: dict[str, Any]) -> None:
        """Nobody listens."""

    def oldest_runs(self, queue: str) -> tuple[bool, list[int]]:
        """No messages wait, whose runs could be lost."""
        return True, []

    def queues_with_messages(self) -> set[str]:
        """None that anyone else could serve."""
        return set()

    def clear_abandoned(self, queue: str, fleet: Fleet) -> Counter[tuple[str, str]]:
        """There is nothing to clear."""
        return Counter()

    def recover(self, broker_id: str, queues: Iterable[str]) -> None:
        """What a dead process had in memory is gone with it."""

    def maintain(self, queues: Iterable[str]) -> None:
        """There is nothing to maintain."""
