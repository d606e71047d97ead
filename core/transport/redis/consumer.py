"""The consumer of one queue in one process: what it fetched, it acknowledges or puts back, whatever Redis does.

This one holds a fixed number of messages and hands them out one by one, as Dramatiq's own does. A worker has a
``DelayConsumer`` for each delay queue, and a ``WindowConsumer`` for each other.
"""

import logging
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import redis
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import _RedisConsumer
from dramatiq.errors import ConnectionClosed
from dramatiq.message import Message

from core.observability import metrics
from core.transport.messages import REDIS_ID, NotAMessage, read

if TYPE_CHECKING:
    from core.transport.redis.broker import RotaBroker

logger = logging.getLogger(__name__)

#: How long to wait before fetching is tried again, in seconds.
FETCH_AGAIN_SECONDS = 0.5
#: The system goes on sending what a connection left behind when it was given up: a fetch may reach Redis for so long
#: afterwards, and how often to look whether one has, in seconds.
STRAY_SECONDS = 120.0
LOOK_FOR_STRAYS_SECONDS = 5.0


class Delivery(MessageProxy):
    """A fetched message. It is its own item on the work queue."""

    def __init__(self, message: Message[Any], consumer: "Consumer") -> None:
        super().__init__(message)
        self.consumer = consumer
        #: The lease on its run, if that was claimed ahead.
        self.lease: Any = None
        #: How long its job itself took, without claim and commit, in seconds.
        self.seconds: float | None = None
        #: Whether it is not over when its actor returns: then it is acknowledged when ``end`` is called.
        self.is_ended_later = False

    @property
    def message(self) -> "Delivery":
        """Itself."""
        return self

    def worked(self, seconds: float) -> None:
        """Its job took so long."""
        self.seconds = seconds

    def end(self) -> None:
        """Have it acknowledged."""
        self.consumer.end(self, is_dead=False)

    def bury(self) -> None:
        """Make it a dead letter before this process ends."""
        self.consumer.end(self, is_dead=True)
        self.consumer.broker.acks.stop()


class Consumer(_RedisConsumer):
    """Fetches up to ``prefetch`` messages, and waits to be woken rather than sleeping."""

    def __init__(self, broker: "RotaBroker", queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)
        self.woken = threading.Event()
        #: Whether there may be something to fetch: it was woken since it last fetched, or did not get all there was.
        self.may_find = True
        #: The ids in Redis of what was fetched and decoded, and is not acknowledged.
        self.held = broker.held(queue_name)
        #: When to look, by the monotonic clock, whether Redis believes that we hold more than we do.
        self._doubt_at = 0.0
        #: Until when a fetch that failed may still reach Redis.
        self._strays_until = 0.0
        broker.wakeups.add(self)

    @property
    def has_room(self) -> bool:
        """Whether it may fetch more."""
        return bool(self.broker.may_fetch(self.queue_name)) and self.outstanding_message_count < self.prefetch

    def wake(self) -> None:
        """Have it fetch, if it has room."""
        self.may_find = True
        if not self.woken.is_set():
            self.woken.set()
        self.broker.wakeups.room_came.set()

    def __next__(self) -> MessageProxy | None:
        try:
            self.woken.clear()
            self.may_find |= time.monotonic() >= self._doubt_at
            return self.step()
        except (redis.RedisError, ConnectionClosed, OSError) as error:
            self.be_doubtful()
            self.broker.trouble.met(error)
            time.sleep(FETCH_AGAIN_SECONDS)
            return None

    def step(self) -> MessageProxy | None:
        """The next message; None, after a while, if there is none."""
        if self.broker.is_draining:
            self.put_back_cache()
        if not self.message_cache and self.may_find:
            self.fetch()
        if not self.message_cache:
            self.rest()
            return None
        return self.take(self.message_cache.pop(0))

    def rest(self) -> None:
        """Wait to be woken; without a worker, fetch in any case."""
        self.woken.wait(self.timeout / 1000)
        self.may_find = True

    def longest_rest(self) -> float:
        """How long to wait at most, if nobody wakes it, in seconds."""
        longest: float = self.broker.longest_rest(self.timeout)
        until_doubt = self._doubt_at - time.monotonic()
        return min(longest, until_doubt if until_doubt > 0 else LOOK_FOR_STRAYS_SECONDS)

    def fetch(self) -> None:
        """Fetch as many as there is room for."""
        if self.has_room:
            self.doubt()
            room, self.may_find = self.prefetch - self.outstanding_message_count, False
            self.message_cache = self.broker.fetch(self.queue_name, room)
            self.may_find |= len(self.message_cache) == room

    def be_doubtful(self) -> None:
        """Look soon, and for a while, whether something was lost on its way here."""
        self._doubt_at, self._strays_until = 0.0, time.monotonic() + STRAY_SECONDS
        self.wake()

    def doubt(self) -> None:
        """Put back what Redis believes that we hold, and we do not."""
        now = time.monotonic()
        if now < self._doubt_at or self.message_cache:
            return
        key = f"{self.broker.namespace}:__acks__.{self.broker.broker_id}.{self.queue_name}"
        fetched = cast("set[bytes]", self.broker.client.smembers(key))
        lost = (
            {redis_id.decode(errors="replace") for redis_id in fetched}
            - self.held.copy()
            - self.broker.acks.waiting(self.queue_name)
        )
        if lost:
            logger.info("messages.not_held queue=%s messages=%s: put back", self.queue_name, len(lost))
            self.broker.do_requeue(self.queue_name, *lost)
            self.broker.wake(self.queue_name, len(lost))
        self._doubt_at = now + LOOK_FOR_STRAYS_SECONDS if now < self._strays_until else float("inf")

    def put_back_cache(self) -> None:
        """Leave what was fetched and not yet handed out to other processes."""
        if self.message_cache:
            self.message_cache, self._doubt_at = [], 0.0
            self.doubt()

    def requeue(self, messages: Iterable[Any]) -> None:
        """Put messages back on the queue, and wake whoever waits for them; what came from the ledger is taken again.

        Raises ConnectionClosed, the one error that Dramatiq's consumer thread survives here: any other ends it.
        """
        returned = [message for message in messages if REDIS_ID in message.options]
        if not returned:
            return
        self.broker.undo_preparation(returned)
        redis_ids = [message.options[REDIS_ID] for message in returned]
        self.held.difference_update(redis_ids)
        self.queued_message_ids.difference_update(message.message_id for message in returned)
        try:
            self.broker.do_requeue(self.queue_name, *redis_ids)
            self.broker.wake(self.queue_name, len(returned))
        except redis.RedisError as error:
            self.be_doubtful()  # whatever is not back on the queue will be put back later
            raise ConnectionClosed(error) from None

    def take(self, body: bytes | None) -> Delivery | None:
        """The message in ``body``; None if it is not for this process's actors, and then it is dealt with."""
        message = self.decode(body)
        if message is None:
            return None
        if message.actor_name not in self.broker.actors:
            self.broker.strangers.take(self.queue_name, message)
            return None
        return Delivery(message, self)

    def decode(self, body: bytes | None) -> Message[Any] | None:
        """The message in ``body``; one that is no message of ours is set aside."""
        try:
            message = read(body, self.queue_name)
        except NotAMessage as problem:
            self.set_aside(body, str(problem))
            return None
        self.held.add(message.options[REDIS_ID])
        return message

    def set_aside(self, body: bytes | None, problem: str) -> None:
        """Move what cannot be a message to the dead-letter queue, where it stays for a week."""
        metrics.message_rejected(self.queue_name, problem)
        logger.error("message.rejected queue=%s problem=%s: moved to the dead-letter queue", self.queue_name, problem)
        namespace = self.broker.namespace
        acks = f"{namespace}:__acks__.{self.broker.broker_id}.{self.queue_name}"
        for redis_id in self.broker.client.smembers(acks):
            if self.broker.client.hget(f"{namespace}:{self.queue_name}.msgs", redis_id) == body:
                self.broker.do_nack(self.queue_name, redis_id)

    def ack(self, message: MessageProxy) -> None:
        """Have the message acknowledged with the next that are sent, if it is over."""
        if not getattr(message, "is_ended_later", False):
            self.end(message, is_dead=False)

    def nack(self, message: MessageProxy) -> None:
        """Have the message moved to the dead letters with the next that are sent."""
        self.end(message, is_dead=True)

    def end(self, message: MessageProxy, *, is_dead: bool) -> None:
        """Be done with a message; one that came straight from the ledger is none of Redis's."""
        redis_id = message.options.get(REDIS_ID)
        if redis_id is None:
            return
        self.broker.acks.add((self.queue_name, redis_id, is_dead))
        self.held.discard(redis_id)
        self.queued_message_ids.discard(message.message_id)

    def close(self) -> None:
        """Stop waiting for tokens."""
        self.broker.wakeups.remove(self)
