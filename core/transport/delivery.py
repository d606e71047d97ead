"""``Delivery``: a message within one process, from the consumer that fetched it to the thread that works on it."""

from collections.abc import Sequence
from typing import Any, Protocol

from dramatiq.broker import MessageProxy
from dramatiq.message import Message

from core.ledger.leases import Lease


class Source(Protocol):
    """The methods of a consumer that a delivery calls."""

    def end(self, delivery: "Delivery", *, is_dead: bool) -> None:
        """Acknowledge or dead-letter ``delivery``, with the next batch."""

    def send_ends(self) -> None:
        """Send the waiting acknowledgements now, since this process is about to end."""


class Delivery(MessageProxy):
    """A fetched message. The same object is the item on the work queue."""

    def __init__(self, message: Message[Any], consumer: Source) -> None:
        super().__init__(message)
        # Otherwise, Dramatiq's proxy would look up these attributes in the message, many times for each message.
        self.queue_name, self.actor_name, self.message_id = message.queue_name, message.actor_name, message.message_id
        self.args, self.kwargs, self.options = message.args, message.kwargs, message.options
        self.consumer = consumer
        self._lease: Lease | None = None
        self._seconds: float | None = None
        self._is_ended_later = False

    @property
    def message(self) -> "Delivery":
        """Return the delivery itself: the work queue reads the attribute ``message`` of its items."""
        return self

    @property
    def lease(self) -> Lease | None:
        """The lease on the message's run, if the run was claimed before a thread started it."""
        return self._lease

    @property
    def seconds(self) -> float | None:
        """The time that the job took, without claim and commit, in seconds."""
        return self._seconds

    @property
    def is_ended_later(self) -> bool:
        """Whether a later call of ``end`` acknowledges the message. If not, the return of the actor does."""
        return self._is_ended_later

    def claimed(self, lease: Lease) -> None:
        """Remember that the message's run was claimed before a thread started it."""
        self._lease = lease

    def worked(self, seconds: float) -> None:
        """Remember how long the job took."""
        self._seconds = seconds

    def end_later(self) -> None:
        """Do not acknowledge the message when its actor returns."""
        self._is_ended_later = True

    def end(self) -> None:
        """Acknowledge the message."""
        self.consumer.end(self, is_dead=False)

    def dead_letter(self) -> None:
        """Dead-letter the message at once, since this process is about to end."""
        self.consumer.end(self, is_dead=True)
        self.consumer.send_ends()


class Preparation(Protocol):
    """Prepares many deliveries together, for example by claiming their runs in one statement."""

    def prepare(self, deliveries: Sequence[Delivery]) -> None:
        """Prepare deliveries that threads are about to start."""

    def undo(self, deliveries: Sequence[Delivery]) -> None:
        """Undo the preparation of deliveries that are requeued before a thread has started them."""
