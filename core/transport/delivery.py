"""A message on its way through one process: from the consumer that fetched it to the thread that works on it."""

from collections.abc import Sequence
from typing import Any, Protocol

from dramatiq.broker import MessageProxy
from dramatiq.message import Message

from core.ledger.leases import Lease


class Source(Protocol):
    """The consumer of a delivery, as far as the delivery needs it."""

    def end(self, delivery: "Delivery", *, is_dead: bool) -> None:
        """Acknowledge ``delivery``, or make it a dead letter, with the next that are sent."""

    def send_ends(self) -> None:
        """Send what was ended, as this process is about to end."""


class Delivery(MessageProxy):
    """A fetched message. It is its own item on the work queue."""

    def __init__(self, message: Message[Any], consumer: Source) -> None:
        super().__init__(message)
        self.consumer = consumer
        self._lease: Lease | None = None
        self._seconds: float | None = None
        self._is_ended_later = False

    @property
    def message(self) -> "Delivery":
        """Itself."""
        return self

    @property
    def lease(self) -> Lease | None:
        """The lease on its run, if that was claimed ahead."""
        return self._lease

    @property
    def seconds(self) -> float | None:
        """How long its job itself took, without claim and commit, in seconds."""
        return self._seconds

    @property
    def is_ended_later(self) -> bool:
        """Whether it is not over when its actor returns: then it is acknowledged when ``end`` is called."""
        return self._is_ended_later

    def claimed(self, lease: Lease) -> None:
        """Its run was claimed ahead."""
        self._lease = lease

    def worked(self, seconds: float) -> None:
        """Its job took so long."""
        self._seconds = seconds

    def end_later(self) -> None:
        """Do not acknowledge it when its actor returns."""
        self._is_ended_later = True

    def end(self) -> None:
        """Have it acknowledged."""
        self.consumer.end(self, is_dead=False)

    def dead_letter(self) -> None:
        """Make it a dead letter before this process ends."""
        self.consumer.end(self, is_dead=True)
        self.consumer.send_ends()


class Preparation(Protocol):
    """Work that is better done for many deliveries together than by the thread of each."""

    def prepare(self, deliveries: Sequence[Delivery]) -> None:
        """Threads are about to begin with these."""

    def undo(self, deliveries: Sequence[Delivery]) -> None:
        """These are requeued, and no thread has begun with them."""
