"""Carries runs and messages to workers over Redis."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from core.ledger.carrier import Flow, OutgoingMessage, OutgoingRun
from core.ledger.releases import Fleet
from core.transport.messages import fast_message, run_message
from core.transport.redis.abandoned_queues import AbandonedQueues
from core.transport.redis.queues import Queues
from core.transport.redis.rooms import Rooms


def never() -> bool:
    """Answer that Redis is not away: in ``SCHEDULER_MODE=distributed``, workers never take runs from the ledger."""
    return False


class RedisCarrier:
    """Carries committed runs to workers over Redis."""

    def __init__(self, queues: Queues, is_away: Callable[[], bool] = never) -> None:
        """``is_away`` returns whether Redis is unusable, so that workers take runs from the ledger."""
        self._queues = queues
        self._rooms = Rooms(queues)
        self._abandoned = AbandonedQueues(queues)
        self._is_away = is_away

    @property
    def carries(self) -> bool:
        """Return whether to send runs over Redis: False only while workers take them from the ledger."""
        return not self._is_away()

    def room(self, queue: str, wanted: int, priority: int = 0, *, pending: int = 0) -> int:
        """Return how many of ``wanted`` runs of ``priority`` may be sent to ``queue`` now.

        The dispatcher sends the other runs later.

        ``pending`` is the number of runs that earlier calls have allowed and that have not been sent yet.
        """
        return self._rooms.take(queue, wanted, are_urgent=priority > 0, pending=pending)

    def send(self, outgoing: Sequence[OutgoingRun]) -> None:
        """Put a message for each run on its queue, in one round trip. Raises redis.RedisError."""
        self._queues.enqueue_many(map(run_message, outgoing))

    def post(self, outgoing: Sequence[OutgoingMessage]) -> None:
        """Put messages of the fast lane on their queues, in one round trip. Raises redis.RedisError."""
        self._queues.enqueue_many(map(fast_message, outgoing))

    def publish(self, channel: str, message: dict[str, Any]) -> None:
        """Publish ``message`` as JSON. Raises redis.RedisError."""
        self._queues.client.publish(channel, json.dumps(message, default=str))

    def oldest_runs(self, queue: str) -> tuple[bool, list[int]]:
        """Return whether messages are waiting on ``queue``, and the runs of the oldest messages.

        Raises redis.RedisError.
        """
        return self._queues.oldest_runs(queue)

    def flows(self, queues: Sequence[str]) -> list[Flow]:
        """Return the flow of each of ``queues``. Raises redis.RedisError."""
        return self._queues.flows(queues)

    def urgent_waiting(self, queue: str, priority: int) -> int:
        """Return how many messages of ``queue`` have at least ``priority``. Raises redis.RedisError."""
        return self._queues.urgent_waiting(queue, priority)

    def newest_runs(self, queue: str, most: int) -> list[int]:
        """Return the runs of the newest ``most`` messages without a priority. Raises redis.RedisError."""
        return list(self._queues.newest_runs(queue, most).values())

    def take_back(self, queue: str, most: int) -> list[int]:
        """Remove up to ``most`` messages of runs that have no priority, the newest first. Return these runs.

        Raises redis.RedisError.
        """
        return self._queues.take_back(queue, most)

    def tell_window(self, queue: str, most: int) -> None:
        """Tell other processes how many messages may wait on ``queue``. Raises redis.RedisError."""
        self._queues.tell_window(queue, most)

    def oldest_urgent_runs(self, queue: str, priority: int) -> tuple[bool, list[int]]:
        """Return the same as ``oldest_runs``, for messages with this ``priority``, 1 to 9.

        Raises redis.RedisError.
        """
        return self._queues.oldest_urgent_runs(queue, priority)

    def demote(self, queue: str) -> None:
        """Move a batch of urgent messages of ``queue`` to the list of messages without a priority.

        Raises redis.RedisError.
        """
        self._queues.demote(queue)

    def queues_with_messages(self) -> set[str]:
        """Return the queues that have messages. The search is bounded, and may miss queues. Raises redis.RedisError."""
        return self._abandoned.with_messages()

    def clear_abandoned(self, queue: str, fleet: Fleet) -> Counter[tuple[str, str]]:
        """Empty a queue that no process serves. Return the number of its messages for each job and outcome.

        Raises redis.RedisError.
        """
        return self._abandoned.clear(queue, fleet)

    def recover(self, broker_id: str, queues: Iterable[str]) -> None:
        """Requeue the messages that a dead process had fetched. Raises redis.RedisError."""
        self._queues.recover(broker_id, queues)

    def maintain(self, queues: Iterable[str]) -> None:
        """Requeue the messages of processes that send no heartbeat to Redis. Raises redis.RedisError."""
        self._queues.maintain(queues)
