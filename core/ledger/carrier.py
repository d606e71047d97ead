"""The messages that the ledger sends, and the protocol ``Carrier``: an object that brings these messages to workers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from core.ledger.releases import Fleet

#: The most messages without a priority that may wait on a queue in Redis. The dispatcher may set a smaller number for a
#: queue.
MOST_WAITING = 20_000
#: The most messages of a priority that may wait on a queue, together with the messages of higher priorities.
MOST_URGENT = 1000


class OutgoingRun(NamedTuple):
    """A committed run whose message must be sent."""

    run_id: int
    job: str
    queue: str
    priority: int = 0


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message of the fast lane, sent if the transaction commits."""

    job: str
    queue: str
    args: dict[str, Any]


class Flow(NamedTuple):
    """Counts of the messages without a priority on one queue."""

    waiting: int
    #: How many messages without a priority were ever fetched. The count begins again at 0 when Redis has lost its data.
    fetched: int


class Carrier(Protocol):
    """Brings messages to workers. ``core.transport`` has a carrier for Redis, and a carrier within one process."""

    @property
    def carries(self) -> bool:
        """Return whether the carrier can send runs now. If it cannot, workers take runs directly from the ledger."""

    def room(self, queue: str, wanted: int, priority: int = 0, *, pending: int = 0) -> int:
        """Return how many of ``wanted`` runs of ``priority`` may be sent to ``queue`` now.

        The dispatcher sends the other runs later.

        ``pending`` is the number of runs that earlier calls have allowed and that have not been sent yet.
        """

    def send(self, outgoing: Sequence[OutgoingRun]) -> None:
        """Put a message for each run on the run's queue. If this raises, the dispatcher sends the messages later."""

    def post(self, outgoing: Sequence[OutgoingMessage]) -> None:
        """Put messages of the fast lane on their queues. If this raises, the messages are lost."""

    def publish(self, channel: str, message: dict[str, Any]) -> None:
        """Publish ``message`` to the present subscribers of ``channel``."""


class DispatchCarrier(Carrier, Protocol):
    """A carrier that can also look up, requeue and clear messages, for the dispatcher."""

    def oldest_runs(self, queue: str) -> tuple[bool, list[int]]:
        """Return whether messages are waiting on ``queue``, and the runs of the oldest messages.

        Raises redis.RedisError.
        """

    def flows(self, queues: Sequence[str]) -> list[Flow]:
        """Return the flow of each of ``queues``. Raises redis.RedisError."""

    def urgent_waiting(self, queue: str, priority: int) -> int:
        """Return how many messages of ``queue`` have at least ``priority``. Raises redis.RedisError."""

    def newest_runs(self, queue: str, most: int) -> list[int]:
        """Return the runs of the newest ``most`` messages without a priority. Raises redis.RedisError."""

    def take_back(self, queue: str, most: int) -> list[int]:
        """Remove up to ``most`` messages of runs that have no priority, the newest first. Return these runs.

        Raises redis.RedisError.
        """

    def tell_window(self, queue: str, most: int) -> None:
        """Tell other processes how many messages may wait on ``queue``. Raises redis.RedisError."""

    def oldest_urgent_runs(self, queue: str, priority: int) -> tuple[bool, list[int]]:
        """Return the same as ``oldest_runs``, for messages with this ``priority``, 1 to 9.

        Raises redis.RedisError.
        """

    def demote(self, queue: str) -> None:
        """Move a batch of urgent messages of ``queue`` to the list of messages without a priority.

        Raises redis.RedisError.
        """

    def queues_with_messages(self) -> set[str]:
        """Return the queues that have messages. The search is bounded, and may miss queues. Raises redis.RedisError."""

    def clear_abandoned(self, queue: str, fleet: Fleet) -> Counter[tuple[str, str]]:
        """Empty a queue that no process serves. Return the number of its messages for each job and outcome.

        Raises redis.RedisError.
        """

    def recover(self, broker_id: str, queues: Iterable[str]) -> None:
        """Requeue the messages that a dead process had fetched. Raises redis.RedisError."""

    def maintain(self, queues: Iterable[str]) -> None:
        """Requeue the messages of processes that send no heartbeat to Redis. Raises redis.RedisError."""
