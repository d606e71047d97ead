"""Messages of the fast lane whose arguments do not fit their job as this process declares it.

While two releases run at the same time, they may declare a job with different parameters, in two *forms*. If one form
refuses a message, the message is sent again after a moment, with the list of the forms that have refused it. In the
end, the message reaches a process that has another form. A message that all live forms have refused becomes a dead
letter. Only PostgreSQL knows which forms are live, so no message becomes a dead letter while PostgreSQL is unavailable.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dramatiq.message import Message

from core.batching import Batcher
from core.database import DATABASE_AWAY
from core.observability.events import MessageDead, MessageRetryWaits, emit
from core.transport.delivery import Delivery
from core.transport.messages import REFUSED_BY
from core.transport.redis.queues import Queues

#: A message is sent again after this wait, like a message for an actor that this process does not have.
REST_SECONDS = 0.5

#: A function of a job, a queue and forms. It returns whether a live worker of the queue may have the job in another
#: form. It may raise DBAPIError.
FitsElsewhere = Callable[[str, str, Collection[str]], bool]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A message, and the form of its job that has refused it."""

    delivery: Delivery
    form: str

    @property
    def refused_by(self) -> tuple[str, ...]:
        """All forms that have refused the message, including this form."""
        return tuple(sorted({*self.delivery.options.get(REFUSED_BY, ()), self.form}))

    def again(self) -> Message[Any]:
        """Return a copy of the message that also names this form as a form that refused it.

        The copy replaces the original message.
        """
        message: Message[Any] = self.delivery.copy(options={REFUSED_BY: list(self.refused_by)})
        return message


class Misfits(Batcher[Misfit]):
    """The thread that keeps messages whose arguments did not fit for a moment, and then sends them again or
    dead-letters them.
    """

    name = "rota-misfits"
    most_together = 1000
    gather_seconds = REST_SECONDS
    again_seconds = 0.0  # since each batch waits before it is handled
    stop_seconds = REST_SECONDS * 10

    def __init__(self, queues: Queues, fits_elsewhere: FitsElsewhere) -> None:
        super().__init__()
        self._queues = queues
        self._fits_elsewhere = fits_elsewhere
        self._decided_at = float("-inf")

    def deal_with(self, batch: Sequence[Misfit]) -> None:
        """Send a message again if it may fit elsewhere. Otherwise dead-letter it. Raises redis.RedisError."""
        self._stopping.wait(max(self._decided_at + REST_SECONDS - time.monotonic(), 0))
        self._decided_at = time.monotonic()
        may_fit = cache(self._may_fit)
        fates = [(each, may_fit(each.delivery.actor_name, each.delivery.queue_name, each.refused_by)) for each in batch]
        self._queues.enqueue_many(each.again() for each, is_left in fates if is_left)
        for each, is_left in fates:
            self._end(each.delivery, is_dead=not is_left)

    def failed(self, error: Exception) -> None:
        """Log that the messages wait, with the error."""
        emit(MessageRetryWaits(self._waiting[0].delivery.message_id, str(error)))

    def _may_fit(self, job: str, queue: str, refused_by: tuple[str, ...]) -> bool:
        try:
            return self._stopping.is_set() or self._fits_elsewhere(job, queue, refused_by)
        except DATABASE_AWAY:
            return True

    def _end(self, delivery: Delivery, *, is_dead: bool) -> None:
        if is_dead:
            emit(MessageDead(delivery.actor_name, delivery.message_id, delivery.options.get("retries", 0)))
        delivery.consumer.end(delivery, is_dead=is_dead)
