"""The consumer of one queue in one process."""

import logging
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import _RedisConsumer
from dramatiq.errors import ConnectionClosed

from core import metrics
from core.redis_broker.client import REDIS_AWAY
from core.redis_broker.messages import REDIS_ID, NotAMessage, read

if TYPE_CHECKING:
    from core.redis_broker.broker import RotaBroker

logger = logging.getLogger(__name__)


class Consumer(_RedisConsumer):
    """Fetches a window of messages, and waits to be woken rather than sleeping."""

    def __init__(self, broker: "RotaBroker", queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)
        self.woken = threading.Event()
        broker.wakeups.add(self)

    @property
    def has_room(self) -> bool:
        """Whether it may fetch more."""
        is_open = not self.broker.is_draining and self.broker.strangers.has_room
        return is_open and self.outstanding_message_count < self.prefetch

    def __next__(self) -> MessageProxy | None:
        try:
            if self.broker.is_draining:
                self.put_back_cache()
            if not self.message_cache:
                self.woken.clear()
                self.fetch()
            if not self.message_cache:
                self.woken.wait(self.timeout / 1000)
                return None
            return self.take(self.message_cache.pop(0))
        except REDIS_AWAY as error:
            raise ConnectionClosed(error) from None

    def put_back_cache(self) -> None:
        """Leave what was fetched and not yet handed out to other processes."""
        cached, self.message_cache = self.message_cache, []
        messages = []
        for body in cached:
            with suppress(NotAMessage):
                messages.append(read(body, self.queue_name))
        self.requeue(messages)

    def requeue(self, messages: Iterable[Any]) -> None:
        """Put messages back on the queue, and wake whoever waits for them."""
        returned = [message for message in messages if REDIS_ID in message.options]
        super().requeue(returned)
        if returned:
            self.broker.wake(self.queue_name, len(returned))

    def fetch(self) -> None:
        """Fill the window."""
        if self.has_room:
            self.message_cache = self.broker.do_fetch(self.queue_name, self.prefetch - self.outstanding_message_count)

    def take(self, body: bytes | None) -> MessageProxy | None:
        """The message in ``body``; one that is no message of ours is set aside."""
        try:
            message = read(body, self.queue_name)
        except NotAMessage as problem:
            self.set_aside(body, str(problem))
            return None
        if message.actor_name not in self.broker.actors:
            self.broker.strangers.take(self.queue_name, message)
            return None
        self.queued_message_ids.add(message.message_id)
        return MessageProxy(message)

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
        """Have the message acknowledged with the next that are sent, unless it came straight from the ledger."""
        self.queued_message_ids.discard(message.message_id)
        if REDIS_ID in message.options:
            self.broker.acks.add(self.queue_name, message.options[REDIS_ID])
        self.wake_when_half_empty()

    def nack(self, message: MessageProxy) -> None:
        """Move the message to the dead-letter queue, unless it came straight from the ledger."""
        try:
            if REDIS_ID in message.options:
                super().nack(message)
        except redis.TimeoutError as error:
            raise ConnectionClosed(error) from None
        finally:
            self.wake_when_half_empty()

    def wake_when_half_empty(self) -> None:
        """Have the window filled again, in time for it never to run dry."""
        if self.outstanding_message_count <= self.prefetch // 2:
            self.woken.set()

    def close(self) -> None:
        """Stop waiting for tokens."""
        self.broker.wakeups.remove(self)
