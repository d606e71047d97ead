"""What the ledger sends, and what takes it to the workers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from core.ledger.releases import Fleet


class OutgoingRun(NamedTuple):
    """A committed run whose message is to be sent."""

    run_id: int
    job: str
    queue: str


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message of the fast lane, to be sent if the transaction commits."""

    job: str
    queue: str
    args: dict[str, Any]


class Carrier(Protocol):
    """Takes messages to workers; ``core.transport`` has one for Redis and one for a single process."""

    @property
    def carries(self) -> bool:
        """Whether runs are to be sent by it now; if not, workers take them straight from the ledger."""

    def send(self, outgoing: Sequence[OutgoingRun]) -> None:
        """Put a message for each run on its queue. May raise; the dispatcher then sends them later."""

    def post(self, outgoing: Sequence[OutgoingMessage]) -> None:
        """Put messages of the fast lane on their queues. May raise; they are then lost."""

    def publish(self, channel: str, message: dict[str, Any]) -> None:
        """Publish ``message`` to those who listen on ``channel`` now."""


class DispatchCarrier(Carrier, Protocol):
    """A carrier that a dispatcher can also ask what became of messages."""

    def oldest_runs(self, queue: str) -> tuple[bool, list[int]]:
        """Whether messages wait on ``queue``, and which runs the oldest carry. Raises redis.RedisError."""

    def queues_with_messages(self) -> set[str]:
        """The queues that have messages, as far as a bounded search has found them. Raises redis.RedisError."""

    def clear_abandoned(self, queue: str, fleet: Fleet) -> Counter[tuple[str, str]]:
        """Empty a queue that nobody serves; what became of the messages of each job. Raises redis.RedisError."""

    def recover(self, broker_id: str, queues: Iterable[str]) -> None:
        """Requeue what a dead process had fetched. Raises redis.RedisError."""

    def maintain(self, queues: Iterable[str]) -> None:
        """Requeue what silent processes had fetched. Raises redis.RedisError."""
