"""The consumer of one queue in one process. It acknowledges, dead-letters or requeues every message that it fetched.

A consumer holds a limited number of messages and returns them one by one, as Dramatiq's own consumer does. A worker has
a ``DelayConsumer`` for each delay queue, and a ``WindowConsumer`` for each other queue.
"""

import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from dramatiq import Consumer as DramatiqConsumer
from dramatiq.broker import MessageProxy
from dramatiq.errors import ConnectionClosed
from dramatiq.message import Message

from core.observability import metrics
from core.observability.events import MessageRejected, MessageRequeued, emit
from core.transport.delivery import Delivery, Preparation
from core.transport.messages import REDIS_ID, NotAMessage, read
from core.transport.redis.acks import Acks
from core.transport.redis.error_log import ErrorLog
from core.transport.redis.intake import Intake
from core.transport.redis.queues import Queues
from core.transport.redis.unknown_actors import UnknownActors
from core.transport.redis.wakeups import Wakeups

#: The wait before a failed fetch is tried again, in seconds.
FETCH_AGAIN_SECONDS = 0.5
#: A *stray* is a message that Redis has assigned to this process and that has not arrived. After a connection is
#: closed, the system may still send its data, so a failed fetch may reach Redis for ``STRAY_SECONDS`` afterwards.
#: During this time, the consumer checks for strays every ``LOOK_FOR_STRAYS_SECONDS``.
STRAY_SECONDS = 120.0
LOOK_FOR_STRAYS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Shared:
    """Objects that the consumers of one process share."""

    queues: Queues
    intake: Intake
    acks: Acks
    wakeups: Wakeups
    unknown_actors: UnknownActors
    error_log: ErrorLog
    #: The actors of this process by name.
    actors: Mapping[str, Any]
    preparation: Preparation | None = None


class Consumer(DramatiqConsumer):
    """Fetches up to ``prefetch`` messages. When the queue is empty, it waits for a wake-up instead of polling."""

    def __init__(self, shared: Shared, queue_name: str, prefetch: int, timeout: int) -> None:
        """``timeout`` is the longest wait for messages, in milliseconds, if there is no worker."""
        self.shared = shared
        self.queues = shared.queues
        self.queue_name = queue_name
        self.prefetch = prefetch
        self.timeout = timeout
        #: The bodies of fetched messages that have not been returned.
        self.message_cache: list[bytes | None] = []
        #: The ids of messages that Dramatiq's thread keeps.
        self.queued_message_ids: set[str] = set()
        self.woken = threading.Event()
        #: Whether the queue may have messages: the consumer was woken since the last fetch, or the last fetch got as
        #: many messages as it asked for.
        self.may_find = True
        #: The ids in Redis of messages that were fetched and decoded, and are not acknowledged.
        self.held = shared.queues.held(queue_name)
        #: The time of the next check for strays, by the monotonic clock.
        self._check_at = 0.0
        #: The time, by the monotonic clock, until which a fetch that failed may still reach Redis.
        self._strays_until = 0.0
        shared.wakeups.add(self)

    @property
    def outstanding_message_count(self) -> int:
        """The number of messages that the consumer has fetched and not ended."""
        return len(self.queued_message_ids) + len(self.message_cache)

    @property
    def has_room(self) -> bool:
        """Whether the consumer may fetch more messages."""
        return self.shared.intake.may_fetch(self.queue_name) and self.outstanding_message_count < self.prefetch

    def wake(self) -> None:
        """Make the consumer fetch messages, if it has room."""
        self.may_find = True
        if not self.woken.is_set():
            self.woken.set()
        self.shared.wakeups.there_is_room()

    def __next__(self) -> MessageProxy | None:
        try:
            self.woken.clear()
            self.may_find |= time.monotonic() >= self._check_at
            return self.step()
        except (redis.RedisError, ConnectionClosed, OSError) as error:
            self.expect_strays()
            self.shared.error_log.failed(error)
            time.sleep(FETCH_AGAIN_SECONDS)
            return None

    def step(self) -> MessageProxy | None:
        """Return the next message, or None after a while if there is no message."""
        if self.shared.intake.is_draining:
            self.requeue_cache()
        if not self.message_cache and self.may_find:
            self.fetch()
        if not self.message_cache:
            self.rest()
            return None
        return self.take(self.message_cache.pop(0))

    def rest(self) -> None:
        """Wait for a wake-up, at most for the time-out. Fetch after the wait in any case."""
        self.woken.wait(self.timeout / 1000)
        self.may_find = True

    def longest_rest(self) -> float:
        """Return the longest wait for a wake-up, in seconds."""
        longest = self.shared.intake.longest_rest(self.timeout)
        until_check = self._check_at - time.monotonic()
        return min(longest, until_check if until_check > 0 else LOOK_FOR_STRAYS_SECONDS)

    def fetch(self) -> None:
        """Fetch as many messages as the consumer has room for. Raises redis.RedisError."""
        if self.has_room:
            self.check_for_strays()
            room, self.may_find = self.prefetch - self.outstanding_message_count, False
            self.message_cache = self.queues.fetch(self.queue_name, room)
            self.may_find |= len(self.message_cache) == room

    def expect_strays(self) -> None:
        """Check for strays soon, and then regularly for two minutes."""
        self._check_at, self._strays_until = 0.0, time.monotonic() + STRAY_SECONDS
        self.wake()

    def check_for_strays(self) -> None:
        """Requeue strays, if the next check is due. Raises redis.RedisError."""
        now = time.monotonic()
        if now < self._check_at or self.message_cache:
            return
        fetched = self.queues.fetched(self.queue_name)
        strays = fetched - self.held.copy() - self.shared.acks.waiting(self.queue_name)
        if strays:
            emit(MessageRequeued(self.queue_name, len(strays)))
            self._put_back(strays)
        self._check_at = now + LOOK_FOR_STRAYS_SECONDS if now < self._strays_until else float("inf")

    def requeue_cache(self) -> None:
        """Requeue fetched messages that have not been returned. Raises redis.RedisError."""
        if self.message_cache:
            self.message_cache, self._check_at = [], 0.0
            self.check_for_strays()

    def requeue(self, messages: Iterable[Any]) -> None:
        """Requeue messages and wake consumers. Runs that came directly from the ledger are taken again later.

        Raises ConnectionClosed, the only error in this method that does not end Dramatiq's consumer thread.
        """
        returned = [message for message in messages if REDIS_ID in message.options]
        if not returned:
            return
        self._undo_preparation(returned)
        redis_ids = [message.options[REDIS_ID] for message in returned]
        self.held.difference_update(redis_ids)
        self.queued_message_ids.difference_update(message.message_id for message in returned)
        try:
            self._put_back(redis_ids)
        except redis.RedisError as error:
            self.expect_strays()  # a later check for strays requeues them
            raise ConnectionClosed(error) from None

    def _put_back(self, redis_ids: Collection[str]) -> None:
        self.queues.requeue(self.queue_name, redis_ids)
        self.queues.wake(self.queue_name, len(redis_ids))

    def _undo_preparation(self, messages: Iterable[Any]) -> None:
        deliveries = [message for message in messages if isinstance(message, Delivery)]
        if self.shared.preparation is not None and deliveries:
            self.shared.preparation.undo(deliveries)

    def take(self, body: bytes | None) -> Delivery | None:
        """Return the message in ``body``.

        If this process does not have the message's actor, return None and give the message to ``UnknownActors``.
        """
        message = self.decode(body)
        if message is None:
            return None
        if message.actor_name not in self.shared.actors:
            self.shared.unknown_actors.add((self.queue_name, message))
            return None
        return Delivery(message, self)

    def decode(self, body: bytes | None) -> Message[Any] | None:
        """Return the message in ``body``. Dead-letter a body that is not one of Rota's messages.

        Raises redis.RedisError.
        """
        try:
            message = read(body, self.queue_name)
        except NotAMessage as problem:
            self.reject(body, str(problem))
            return None
        self.held.add(message.options[REDIS_ID])
        return message

    def reject(self, body: bytes | None, problem: str) -> None:
        """Dead-letter a body that is not a message. Raises redis.RedisError."""
        metrics.message_rejected(self.queue_name, problem)
        emit(MessageRejected(self.queue_name, problem))
        self.queues.dead_letter_body(self.queue_name, body)

    def ack(self, message: MessageProxy) -> None:
        """Acknowledge the message with the next batch, unless a later call of ``end`` does so."""
        if not getattr(message, "is_ended_later", False):
            self.end(message, is_dead=False)

    def nack(self, message: MessageProxy) -> None:
        """Dead-letter the message with the next batch."""
        self.end(message, is_dead=True)

    def end(self, message: MessageProxy, *, is_dead: bool) -> None:
        """Acknowledge or dead-letter a message with the next batch. Do nothing for a message that came directly from
        the ledger.
        """
        redis_id = message.options.get(REDIS_ID)
        if redis_id is None:
            return
        self.shared.acks.add((self.queue_name, redis_id, is_dead))
        self.held.discard(redis_id)
        self.queued_message_ids.discard(message.message_id)

    def send_ends(self) -> None:
        """Send the waiting acknowledgements, since this process is about to end."""
        self.shared.acks.stop()

    def close(self) -> None:
        """Stop waiting for tokens."""
        self.shared.wakeups.remove(self)
