"""Sends acknowledgements in batches."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import redis

from core.batching import Batcher
from core.observability.events import MessageNotAcknowledged, emit
from core.transport.redis.connection import SOCKET_TIMEOUT_SECONDS
from core.transport.redis.error_log import ErrorLog
from core.transport.redis.queues import Queues

#: The queue, the id of the message in Redis, and whether the message is dead-lettered.
Ack = tuple[str, str, bool]


class Acks(Batcher[Ack]):
    """Sends the acknowledgements of all consumers of this process."""

    name = "rota-acks"
    most_together = 500
    gather_seconds = 0.005
    again_seconds = 0.5
    stop_seconds = SOCKET_TIMEOUT_SECONDS

    def __init__(self, queues: Queues, error_log: ErrorLog) -> None:
        super().__init__()
        self._queues = queues
        self._error_log = error_log

    def waiting(self, queue_name: str) -> set[str]:
        """Return the ids of messages of a queue that have ended and whose acknowledgement has not been sent."""
        return {redis_id for name, redis_id, _ in self._waiting.copy() if name == queue_name}

    def deal_with(self, batch: Sequence[Ack]) -> None:
        """Send the acknowledgements ``batch``, in one round trip per queue. Raises RedisError."""
        queue_and_end = itemgetter(0, 2)
        for (queue_name, is_dead), group in groupby(sorted(batch, key=queue_and_end), key=queue_and_end):
            send = self._queues.dead_letter if is_dead else self._queues.acknowledge
            send(queue_name, [redis_id for _, redis_id, _ in group])

    def failed(self, error: Exception) -> None:
        """Log the error, unless it has been logged."""
        if isinstance(error, (redis.RedisError, OSError)):
            self._error_log.failed(error)
        else:
            emit(MessageNotAcknowledged(), error)
