"""The consumer of a worker's delay queue."""

import heapq

from dramatiq.common import current_millis

from core.transport.delivery import Delivery
from core.transport.redis.consumer import Consumer, Shared
from core.transport.redis.intake import IDLE_SECONDS


class DelayConsumer(Consumer):
    """Returns delayed messages, which Dramatiq's thread keeps, and wakes the thread when the next message is due."""

    def __init__(self, shared: Shared, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(shared, queue_name, prefetch, timeout)
        self.held.clear()  # Dramatiq's thread has dropped its messages if it makes a new consumer
        self._etas: list[float] = []

    def take(self, body: bytes | None) -> Delivery | None:
        """Return the message in ``body``, and remember when it is due."""
        message = super().take(body)
        if message is not None:
            self.queued_message_ids.add(message.message_id)
            eta = message.options.get("eta")
            heapq.heappush(self._etas, eta if isinstance(eta, int | float) else 0)
        return message

    def rest(self) -> None:
        """Wait for a wake-up, or until the next message is due. Return at once if a message is due already."""
        now = current_millis()
        if self._etas and self._etas[0] <= now:
            while self._etas and self._etas[0] <= now:
                heapq.heappop(self._etas)
            return
        due_in = (self._etas[0] - now) / 1000 if self._etas else IDLE_SECONDS
        self.woken.wait(min(due_in, self.longest_rest()))
