"""Dramatiq's Redis broker with its keys and semantics, and what a service needs beside them.

- A consumer that found its queue empty is woken by a token on ``…:__wake__.<queue>`` instead of sleeping: one blocking
  pop per process covers all its queues. A producer that pushes no token is still found within a second.
- A consumer whose window was full is woken when half of it is free again.
- Messages that cannot be decoded, or are not ours, are moved to the dead-letter queue and counted; the others go on.
- A dead process's messages are put back when the dispatcher says so, and by a timer, instead of by chance.
- Acknowledgements are gathered and sent together, so no worker waits for a round trip, nor for Redis when it is away.
  A process that is killed before they are sent has those few messages delivered again: at least once, as ever.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, cast
from uuid import uuid4

import redis
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import ConnectionClosed
from dramatiq.message import Message
from redis.backoff import NoBackoff
from redis.retry import Retry

from core import metrics
from core.logs import Complaint

logger = logging.getLogger(__name__)

REDIS_AWAY = (redis.ConnectionError, redis.TimeoutError)

CONNECT_TIMEOUT_SECONDS = 2.0
#: redis-py 8 gives up on any read after 5 s by default; the blocking pop must be shorter.
SOCKET_TIMEOUT_SECONDS = 5.0
WAKE_BLOCK_SECONDS = 2.0
#: After a lost connection, and while no consumer has room.
LISTEN_AGAIN_SECONDS = 0.5

#: Tokens beyond this are cut off: a woken consumer fetches a windowful.
MOST_TOKENS = 64
#: Tokens that nobody took are worthless by then: everybody has polled.
TOKENS_LAST_MS = 5_000

#: Acknowledgements sent in one round trip.
MOST_ACKS = 500
SEND_ACKS_AGAIN_SECONDS = 0.5
#: Dramatiq's own "ack" (brokers/redis/dispatch.lua), for many: what is no longer ours to acknowledge is left alone.
ACK_MANY = """
for _, id in ipairs(ARGV) do
    if redis.call('srem', KEYS[1], id) == 1 then redis.call('hdel', KEYS[2], id) end
end
"""

#: The option of a message that carries a run of the ledger.
RUN_ID = "run_id"
#: How far into a queue to look for the oldest message of the ledger.
LOOK_AHEAD = 100


def connect(url: str) -> redis.Redis:
    """A client that fails within seconds, not after a series of retries; nothing is opened yet."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1),
    )


class RotaBroker(RedisBroker):
    """The broker of every Rota process."""

    def __init__(self, client: redis.Redis, *, middleware: Sequence[Any] = ()) -> None:
        super().__init__(client=client, middleware=list(middleware), maintenance_chance=0)
        self.wakeups = Wakeups(self)
        self.acks = Acks(self)

    @property
    def consumer_class(self) -> "type[Consumer]":
        return Consumer

    def wake_key(self, queue_name: str) -> str:
        """The list on which consumers of ``queue_name`` wait."""
        return f"{self.namespace}:__wake__.{queue_name}"

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Enqueue one message, after ``delay`` milliseconds if given."""
        message = message.copy(options={"redis_message_id": str(uuid4())})
        if delay is not None:
            message = message.copy(queue_name=dq_name(message.queue_name), options={"eta": current_millis() + delay})
        self.emit_before("enqueue", message, delay)
        self._push([message])
        self.emit_after("enqueue", message, delay)
        return message

    def enqueue_many(self, messages: Iterable[Message[Any]]) -> None:
        """Enqueue ``messages`` in one round trip, without the middleware's enqueue hooks."""
        self._push([message.copy(options={"redis_message_id": str(uuid4())}) for message in messages])

    def _push(self, messages: Sequence[Message[Any]]) -> None:
        by_queue = sorted(messages, key=lambda message: message.queue_name)
        pipe = self.client.pipeline(transaction=True)
        for queue_name, group in groupby(by_queue, key=lambda message: message.queue_name):
            bodies = {message.options["redis_message_id"]: message.encode() for message in group}
            pipe.hset(f"{self.namespace}:{queue_name}.msgs", mapping=bodies)
            pipe.rpush(f"{self.namespace}:{queue_name}", *bodies)
            self._wake(pipe, queue_name, len(bodies))
        pipe.execute()

    def _wake(self, pipe: Any, queue_name: str, count: int) -> None:
        key = self.wake_key(queue_name)
        pipe.lpush(key, *[b"1"] * min(count, MOST_TOKENS))
        pipe.ltrim(key, 0, MOST_TOKENS - 1)
        pipe.pexpire(key, TOKENS_LAST_MS)

    def recover(self, broker_id: str) -> None:
        """Put back at once what a dead process had fetched and not acknowledged."""
        self.client.zadd(f"{self.namespace}:__heartbeats__", {broker_id: 0})
        self.maintain()

    def maintain(self) -> None:
        """Put back what processes that are silent for a minute had fetched, and drop dead letters after a week."""
        for queue_name in [*self.queues, *self.delay_queues]:
            arguments = [self.broker_id, self.heartbeat_timeout, self.dead_message_ttl, 1, self._max_unpack_size()]
            self.scripts["dispatch"](keys=[self.namespace], args=["qsize", current_millis(), queue_name, *arguments])
            pipe = self.client.pipeline(transaction=True)
            self._wake(pipe, queue_name, 1)
            pipe.execute()

    def oldest_run(self, queue_name: str) -> tuple[bool, int | None]:
        """Whether messages wait on the queue, and which run the oldest of them carries, if one is found."""
        ids = cast("list[bytes]", self.client.lrange(f"{self.namespace}:{queue_name}", 0, LOOK_AHEAD - 1))
        if not ids:
            return False, None
        bodies = cast("list[bytes | None]", self.client.hmget(f"{self.namespace}:{queue_name}.msgs", ids))
        return True, next(filter(None, (run_id(body, queue_name) for body in bodies)), None)

    def close(self) -> None:
        """Send what is left to acknowledge, stop listening, and close the connections."""
        self.acks.stop()
        self.wakeups.stop()
        self.client.close()


class Consumer(_RedisConsumer):
    """Fetches a window of messages, and waits to be woken rather than sleeping."""

    def __init__(self, broker: RotaBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)
        self.woken = threading.Event()
        broker.wakeups.add(self)

    @property
    def has_room(self) -> bool:
        """Whether it may fetch more."""
        return bool(self.outstanding_message_count < self.prefetch)

    def __next__(self) -> MessageProxy | None:
        try:
            if not self.message_cache:
                self.woken.clear()
                self.fetch()
            if not self.message_cache:
                self.woken.wait(self.timeout / 1000)
                return None
            return self.take(self.message_cache.pop(0))
        except REDIS_AWAY as error:
            raise ConnectionClosed(error) from None

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
        """Have the message acknowledged with the next that are sent."""
        self.queued_message_ids.discard(message.message_id)
        self.broker.acks.add(self.queue_name, message.options["redis_message_id"])
        self.wake_when_half_empty()

    def nack(self, message: MessageProxy) -> None:
        """Move the message to the dead-letter queue."""
        try:
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


class Acks:
    """One thread that sends the acknowledgements of all consumers of this process, as many together as have come."""

    def __init__(self, broker: RotaBroker) -> None:
        self._broker = broker
        self._script = broker.client.register_script(ACK_MANY)
        self._waiting: deque[tuple[str, str]] = deque()
        self._come = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, queue_name: str, redis_id: str) -> None:
        """Acknowledge a message soon."""
        self._waiting.append((queue_name, redis_id))
        self._come.set()
        if self._thread is None:
            self._start()

    def stop(self) -> None:
        """Send what is left, if Redis is there."""
        self._stopping.set()
        self._come.set()
        if self._thread is not None:
            self._thread.join(SOCKET_TIMEOUT_SECONDS)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rota-acks", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        complaint = Complaint(logger)
        while not self._stopping.is_set() or self._waiting:
            self._come.wait()
            self._come.clear()
            try:
                self._send_all()
                complaint.withdraw()
            except (redis.RedisError, OSError) as error:
                complaint.say(f"acks.waiting: {error}; they are sent when Redis can be reached")
                if self._stopping.wait(SEND_ACKS_AGAIN_SECONDS):
                    return
                self._come.set()

    def _send_all(self) -> None:
        while self._waiting:
            batch = [self._waiting[index] for index in range(min(len(self._waiting), MOST_ACKS))]
            for queue_name, group in groupby(sorted(batch), key=itemgetter(0)):
                self._send(queue_name, [redis_id for _, redis_id in group])
            for _ in batch:
                self._waiting.popleft()

    def _send(self, queue_name: str, redis_ids: list[str]) -> None:
        namespace, broker_id = self._broker.namespace, self._broker.broker_id
        keys = [f"{namespace}:__acks__.{broker_id}.{queue_name}", f"{namespace}:{queue_name}.msgs"]
        self._script(keys=keys, args=redis_ids)


class Wakeups:
    """One thread that waits for tokens on behalf of all consumers of this process."""

    def __init__(self, broker: RotaBroker) -> None:
        self._broker = broker
        self._consumers: dict[str, Consumer] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def add(self, consumer: Consumer) -> None:
        """Wake ``consumer`` from now on."""
        with self._lock:
            self._consumers[self._broker.wake_key(consumer.queue_name)] = consumer
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rota-wakeups", daemon=True)
                self._thread.start()

    def remove(self, consumer: Consumer) -> None:
        """Wake ``consumer`` no more."""
        with self._lock:
            key = self._broker.wake_key(consumer.queue_name)
            if self._consumers.get(key) is consumer:
                del self._consumers[key]

    def stop(self) -> None:
        """End the thread; it is a daemon, so nobody need wait for it."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen_once()
            except (redis.RedisError, OSError, ValueError) as error:
                logger.debug("wakeups.lost: %s (consumers poll meanwhile)", error)
                self._stopping.wait(LISTEN_AGAIN_SECONDS)

    def _listen_once(self) -> None:
        with self._lock:
            waiting = {key: consumer for key, consumer in self._consumers.items() if consumer.has_room}
        if not waiting:
            self._stopping.wait(LISTEN_AGAIN_SECONDS)
            return
        popped = cast("tuple[bytes, bytes] | None", self._broker.client.blpop(list(waiting), WAKE_BLOCK_SECONDS))
        if popped is not None:
            waiting[popped[0].decode()].woken.set()


class NotAMessage(Exception):
    """What lay on a queue is no message of ours; the text says in a word or two why."""


def read(body: bytes | None, queue_name: str) -> Message[Any]:
    """The message in ``body``, found on ``queue_name``. Raises NotAMessage."""
    if body is None:
        raise NotAMessage("no body")
    try:
        message = Message.decode(body)
    except Exception:  # noqa: BLE001 — anything may lie on a queue
        raise NotAMessage("corrupt") from None
    if not is_well_formed(message) or message.queue_name != queue_name:
        raise NotAMessage("not ours")
    return message


def is_well_formed(message: Message[Any]) -> bool:
    """Whether the fields that Dramatiq's threads rely on are what they take them for."""
    return (
        isinstance(message.actor_name, str)
        and isinstance(message.message_id, str)
        and isinstance(message.args, list | tuple)
        and isinstance(message.kwargs, dict)
        and isinstance(message.options, dict)
        and isinstance(message.options.get("redis_message_id"), str)
    )


def run_id(body: bytes | None, queue_name: str) -> int | None:
    """The run that the message in ``body`` carries, if it is one of the ledger's."""
    try:
        value = read(body, queue_name).options.get(RUN_ID)
    except NotAMessage:
        return None
    return value if isinstance(value, int) else None
