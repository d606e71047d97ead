"""Requeues messages for actors that this process does not have, and ends messages for actors that no process has.

During a deploy a queue has messages of two releases. If another live process has the actor, the message is requeued
after a short pause. If no process has had the actor for a while, the message is dropped if the ledger has its run, and
otherwise dead-lettered. While PostgreSQL is away, the jobs of other processes are unknown, and no message is ended.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from dramatiq.message import Message

from core.batching import Batcher
from core.database import DATABASE_AWAY
from core.ledger.releases import Fleet
from core.observability import metrics
from core.observability.events import MessageDropped, MessageNotRequeued, MessageOrphaned, MessageUndecided, emit
from core.transport.messages import REDIS_ID
from core.transport.redis.fate import Fate, fate
from core.transport.redis.queues import Queues

#: A message is kept for this long before it is requeued. Without the pause, fetching and requeueing would be a busy
#: loop.
PAUSE_SECONDS = 0.5
#: The longest grace, in seconds. It is bounded because messages for unknown actors delay messages of other jobs on the
#: queue.
LONGEST_GRACE_SECONDS = 60.0
#: No more messages are fetched while this many messages for unknown actors are kept.
MOST_HELD = 1000

#: A message, and the queue from which it was fetched.
Held = tuple[str, Message[Any]]


class UnknownActors(Batcher[Held]):
    """The thread that keeps messages for unknown actors for a moment, and then requeues or ends them."""

    name = "rota-unknown-actors"
    most_together = MOST_HELD
    gather_seconds = PAUSE_SECONDS
    again_seconds = 0.0  # since each batch waits before it is handled
    stop_seconds = PAUSE_SECONDS * 10

    def __init__(self, queues: Queues, ask_fleet: Callable[[], Fleet] = Fleet, grace_seconds: float = 0) -> None:
        """``ask_fleet`` may raise SQLAlchemy's DBAPIError. By default, no process has any job."""
        super().__init__()
        self._queues = queues
        self._ask_fleet = ask_fleet
        self._grace_seconds = min(grace_seconds, LONGEST_GRACE_SECONDS)
        self._unknown_since: dict[str, float] = {}
        self._decided_at = float("-inf")

    @property
    def has_room(self) -> bool:
        """Whether more messages may be fetched."""
        return len(self._waiting) < MOST_HELD

    def deal_with(self, batch: Sequence[Held]) -> None:
        """Requeue or end each message. Requeue all messages when this process ends. Raises redis.RedisError."""
        self._pause()
        fleet = None if self._stopping.is_set() else self._fleet()
        requeued: dict[str, list[str]] = {}
        for queue_name, message in batch:
            found = Fate.SERVED if fleet is None else self._fate(message, fleet)
            if found == Fate.SERVED:
                requeued.setdefault(queue_name, []).append(message.options[REDIS_ID])
            else:
                self._end(queue_name, message, found)
        for queue_name, redis_ids in requeued.items():
            self._queues.requeue(queue_name, redis_ids)
            self._queues.held(queue_name).difference_update(redis_ids)

    def _pause(self) -> None:
        """Wait until the whole pause has passed since the last batch, since requeued messages may be fetched again at
        once.
        """
        self._stopping.wait(max(self._decided_at + PAUSE_SECONDS - time.monotonic(), 0))
        self._decided_at = time.monotonic()

    def failed(self, error: Exception) -> None:
        """Log the error."""
        if isinstance(error, (redis.RedisError, OSError)):
            emit(MessageNotRequeued(len(self._waiting), str(error)))
        else:
            emit(MessageUndecided(len(self._waiting)), error)

    def _fleet(self) -> Fleet | None:
        """Return the fleet, or None while PostgreSQL cannot be reached."""
        try:
            return self._ask_fleet()
        except DATABASE_AWAY:
            return None

    def _fate(self, message: Message[Any], fleet: Fleet) -> Fate:
        """Return the fate of ``message``. An orphan is requeued until the grace is over, since its job may return."""
        found = fate(message, fleet)
        if found == Fate.SERVED:
            self._unknown_since.pop(message.actor_name, None)
        if found != Fate.ORPHANED:
            return found
        now = time.monotonic()
        is_over = now - self._unknown_since.setdefault(message.actor_name, now) >= self._grace_seconds
        return Fate.ORPHANED if is_over else Fate.SERVED

    def _end(self, queue_name: str, message: Message[Any], found: Fate) -> None:
        job, redis_id = message.actor_name, message.options[REDIS_ID]
        self._queues.held(queue_name).discard(redis_id)
        if found == Fate.DROPPED:
            emit(MessageDropped(job, queue_name))
            self._queues.acknowledge(queue_name, [redis_id])
            return
        metrics.message_rejected(queue_name, Fate.ORPHANED)
        emit(MessageOrphaned(job, queue_name))
        self._queues.dead_letter(queue_name, [redis_id])
