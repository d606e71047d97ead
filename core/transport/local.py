"""The broker of ``SCHEDULER_MODE=local``: nothing leaves the process.

Runs are taken directly from the ledger and need no broker. This broker carries only the fast lane: messages between
jobs of this process. The messages are in memory, and are lost when the process ends.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from queue import Queue
from typing import Any

from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.stub import StubBroker, _StubConsumer
from dramatiq.middleware import Middleware

from core.ledger.carrier import Flow, OutgoingMessage, OutgoingRun
from core.ledger.releases import Fleet
from core.observability.events import MessageLost, emit
from core.transport.delivery import Delivery
from core.transport.messages import RUN_ID, fast_message
from core.transport.reservations import NONE_RESERVED, Reservation
from core.transport.use_work_queue import UseWorkQueue
from core.transport.work_queue import WorkQueue


class LocalBroker(StubBroker):
    """Dramatiq's queues in memory."""

    def __init__(
        self, middleware: Sequence[Middleware] = (), *, reserved: Mapping[str, Reservation] = NONE_RESERVED
    ) -> None:
        """``reserved`` has the reserved threads by queue."""
        super().__init__([*middleware, UseWorkQueue(reserved)])
        self._work_queue: WorkQueue | None = None
        self._is_draining = False

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 100) -> Consumer:
        """Return a consumer of the queue, for a worker's threads."""
        assert self._work_queue is not None, "only a worker consumes"
        return LocalConsumer(self.queues[queue_name], prefetch, timeout, self._work_queue)

    def begin_work(self, work_queue: WorkQueue) -> None:
        """Consume for the threads of ``work_queue`` from now on."""
        self._work_queue, self._is_draining = work_queue, False

    @property
    def is_draining(self) -> bool:
        """Whether the process is ending and takes no more runs from the ledger."""
        return self._is_draining

    def drain(self) -> None:
        """Take no more runs from the ledger. Threads still work on messages in memory."""
        self._is_draining = True

    @property
    def is_drained(self) -> bool:
        """Whether all messages and runs have ended."""
        is_idle = self._work_queue is None or self._work_queue.empty()
        return is_idle and not any(queue.unfinished_tasks for queue in self.queues.values())


class LocalConsumer(_StubConsumer):
    """Gives messages of the fast lane to the threads. Runs come directly from the ledger, and are not acknowledged."""

    def __init__(self, queue: "Queue[bytes]", prefetch: int, timeout: int, work_queue: WorkQueue) -> None:
        super().__init__(queue, [], prefetch, timeout)
        self._work_queue = work_queue

    def __next__(self) -> MessageProxy | None:
        """Return a message that is due later, which Dramatiq's thread then keeps.

        Give any other message to the threads.
        """
        found = super().__next__()
        if found is None:
            return None
        delivery = Delivery(found.copy(), self)
        if delivery.options.get("eta") is not None:
            return delivery
        self._work_queue.expect(delivery.queue_name)
        self._work_queue.put(delivery)
        return None

    def ack(self, message: MessageProxy) -> None:
        """Count a message of the fast lane as ended. Do nothing for a run."""
        if RUN_ID not in message.options:
            super().ack(message)

    def nack(self, message: MessageProxy) -> None:
        """Count a failed message as ended. The log has the error, and there are no dead letters in memory."""
        self.ack(message)

    def end(self, delivery: Delivery, *, is_dead: bool) -> None:
        """Count a message as ended."""
        self.ack(delivery)

    def send_ends(self) -> None:
        """Do nothing, since acknowledgements are not sent."""

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Drop messages that have not started, since the process is ending."""
        lost = Counter(message.actor_name for message in messages if RUN_ID not in message.options)
        for job, count in lost.items():
            emit(MessageLost(job, count))


class LocalCarrier:
    """The carrier without Redis: runs stay in the ledger, the fast lane is in memory, and nothing is published."""

    #: Always False, since runs stay in the ledger.
    carries = False

    def __init__(self, broker: LocalBroker) -> None:
        self._broker = broker

    def room(self, queue: str, wanted: int, priority: int = 0, *, pending: int = 0) -> int:
        """Answer that no run may be sent, since threads take runs from the ledger."""
        return 0

    def send(self, outgoing: Sequence[OutgoingRun]) -> None:
        """Do nothing, since threads take runs from the ledger."""

    def post(self, outgoing: Sequence[OutgoingMessage]) -> None:
        """Put messages of the fast lane on their queues."""
        for each in outgoing:
            self._broker.enqueue(fast_message(each))

    def publish(self, channel: str, message: dict[str, Any]) -> None:
        """Do nothing, since a single process has no subscribers."""

    def oldest_runs(self, queue: str) -> tuple[bool, list[int]]:
        """Answer that messages are waiting, so that no run counts as lost."""
        return True, []

    def flows(self, queues: Sequence[str]) -> list[Flow]:
        """Answer that no message is waiting."""
        return [Flow(0, 0) for _ in queues]

    def urgent_waiting(self, queue: str, priority: int) -> int:
        """Answer that no message is waiting."""
        return 0

    def newest_runs(self, queue: str, most: int) -> list[int]:
        """Return no runs, since there are no messages in Redis."""
        return []

    def take_back(self, queue: str, most: int) -> list[int]:
        """Do nothing, since there are no messages in Redis."""
        return []

    def tell_window(self, queue: str, most: int) -> None:
        """Do nothing, since no other process sends messages."""

    def oldest_urgent_runs(self, queue: str, priority: int) -> tuple[bool, list[int]]:
        """Answer as ``oldest_runs`` does."""
        return True, []

    def demote(self, queue: str) -> None:
        """Do nothing, since there are no messages in Redis."""

    def queues_with_messages(self) -> set[str]:
        """Return no queues, since all queues are in this process."""
        return set()

    def clear_abandoned(self, queue: str, fleet: Fleet) -> Counter[tuple[str, str]]:
        """Do nothing, since there are no abandoned queues."""
        return Counter()

    def recover(self, broker_id: str, queues: Iterable[str]) -> None:
        """Do nothing, since the messages of a dead process are lost with its memory."""

    def maintain(self, queues: Iterable[str]) -> None:
        """Do nothing, since there are no messages in Redis."""
