"""Messages of the fast lane whose arguments do not fit their job as this process has it.

While two releases are side by side, a job may be declared in two forms. A message that one of them refuses is sent
again after a moment, with the forms that have refused it, until it comes to a process that has the job in another; once
every live form has refused it, it is a dead letter. Nothing is one while PostgreSQL cannot be asked which forms live.
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

#: How long a message rests before it is sent again: as one for an actor that this process does not have.
REST_SECONDS = 0.5

#: Whether a live worker may have a job, on a queue, in none of the forms that are given. May raise DBAPIError.
FitsElsewhere = Callable[[str, str, Collection[str]], bool]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A message, and the form of its job that has refused it."""

    delivery: Delivery
    form: str

    @property
    def refused_by(self) -> tuple[str, ...]:
        """All the forms that have."""
        return tuple(sorted({*self.delivery.options.get(REFUSED_BY, ()), self.form}))

    def again(self) -> Message[Any]:
        """The message that is sent in its place."""
        message: Message[Any] = self.delivery.copy(options={REFUSED_BY: list(self.refused_by)})
        return message


class Misfits(Batcher[Misfit]):
    """One thread that holds such messages for a moment, and then sends them again or ends them."""

    name = "rota-misfits"
    most_together = 1000
    gather_seconds = REST_SECONDS
    again_seconds = 0.0  # since it gathers again first
    stop_seconds = REST_SECONDS * 10

    def __init__(self, queues: Queues, fits_elsewhere: FitsElsewhere) -> None:
        super().__init__()
        self._queues = queues
        self._fits_elsewhere = fits_elsewhere
        self._decided_at = float("-inf")

    def deal_with(self, batch: Sequence[Misfit]) -> None:
        """Send again those that may fit elsewhere, and make dead letters of the others. Raises redis.RedisError."""
        self._stopping.wait(max(self._decided_at + REST_SECONDS - time.monotonic(), 0))
        self._decided_at = time.monotonic()
        may_fit = cache(self._may_fit)
        fates = [(each, may_fit(each.delivery.actor_name, each.delivery.queue_name, each.refused_by)) for each in batch]
        self._queues.enqueue_many(each.again() for each, is_left in fates if is_left)
        for each, is_left in fates:
            self._end(each.delivery, is_dead=not is_left)

    def failed(self, error: Exception) -> None:
        """Log it."""
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
