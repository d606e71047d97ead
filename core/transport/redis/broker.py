"""The broker of every Rota process."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, cast

import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis, dq_name, q_name
from dramatiq.message import Message, get_encoder
from dramatiq.middleware import Middleware, MiddlewareError
from dramatiq.worker import Worker

from core.ledger.releases import Fleet
from core.transport.messages import new_id, run_id
from core.transport.redis.abandoned_queues import Abandoned
from core.transport.redis.acks import Acks
from core.transport.redis.connection import evaluate_once
from core.transport.redis.consumer import Consumer, Delivery
from core.transport.redis.delay_consumer import IDLE_SECONDS, DelayConsumer
from core.transport.redis.error_log import Trouble
from core.transport.redis.unknown_actors import Strangers
from core.transport.redis.wakeups import MOST_TOKENS, TOKENS_LAST_MS, Wakeups
from core.transport.redis.window_consumer import WindowConsumer
from core.transport.work_queue import WorkQueue

#: How far into a queue to look for the oldest message of the ledger.
LOOK_AHEAD = 100
#: Messages that are enqueued in one round trip.
BATCH = 1000
#: Dramatiq's own "fetch" (brokers/redis/dispatch.lua) in fewer steps, and its many bodies as one, which Python's parser
#: reads far faster: KEYS heartbeats, list, acks, bodies; ARGV time, broker, how many.
FETCH = """
redis.call('zadd', KEYS[1], ARGV[1], ARGV[2])
local ids = redis.call('lrange', KEYS[2], 0, ARGV[3] - 1)
if #ids == 0 then return {} end
redis.call('ltrim', KEYS[2], #ids, -1)
redis.call('sadd', KEYS[3], unpack(ids))
local bodies, lengths = redis.call('hmget', KEYS[4], unpack(ids)), {}
for index = 1, #ids do
    lengths[index] = bodies[index] and #bodies[index] or -1
    bodies[index] = bodies[index] or ''
end
return {table.concat(lengths, ','), table.concat(bodies)}
"""
#: How often a consumer looks whether it is to stop, once its worker is stopping, in seconds.
LOOK_AGAIN_SECONDS = 0.1
#: The most that the script can unpack.
MOST_FETCHED = 1000


class Preparation(Protocol):
    """What is better done for many messages than by the thread of each."""

    def prepare(self, deliveries: Sequence[Delivery]) -> None:
        """Threads are about to begin with these."""

    def undo(self, deliveries: Sequence[Delivery]) -> None:
        """These are put back, and no thread has begun with them."""


def always() -> bool:
    """Whether this process may claim: always, without a heartbeat."""
    return True


class RotaBroker(RedisBroker):
    """Dramatiq's Redis broker, with acknowledgements gathered and consumers woken."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        middleware: Sequence[Any] = (),
        ledger_queues: Collection[str] = (),
        may_claim: Callable[[], bool] = always,
        preparation: Preparation | None = None,
        ask_fleet: Callable[[], Fleet] = Fleet,
        orphan_seconds: float = 0,
    ) -> None:
        """``ledger_queues``: the queues of jobs whose runs are in the ledger; ``may_claim``: whether this process may
        claim such runs just now; ``preparation``: what is done for messages that threads are about to begin with.

        ``ask_fleet`` tells what other processes know; by default there are none. It may raise SQLAlchemy's DBAPIError.
        """
        #: What is called for a signal: only those of the middleware that have something to say to it.
        self._hooks: dict[str, list[Callable[..., None]]] = {}
        super().__init__(client=client, middleware=[*middleware, Hands()], maintenance_chance=0)
        #: Set when the worker stops: consumers fetch no more, and put back what they hold.
        self.is_draining = False
        #: What the worker's threads have in hand, while there is a worker.
        self.work_queue: WorkQueue | None = None
        self.ledger_queues = frozenset(ledger_queues)
        self.may_claim = may_claim
        self.preparation = preparation
        self.trouble = Trouble(client)
        self._held: dict[str, set[str]] = defaultdict(set)
        self._fetch = client.register_script(FETCH)
        self.wakeups = Wakeups(self)
        self.acks = Acks(self)
        self.strangers = Strangers(self, ask_fleet, orphan_seconds)
        self.abandoned = Abandoned(self)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """A consumer of the queue: for a worker, or for whoever takes messages one by one."""
        if self.work_queue is None:
            return Consumer(self, queue_name, prefetch, timeout)
        if queue_name in self.delay_queues:
            return DelayConsumer(self, queue_name, prefetch, timeout)
        return WindowConsumer(self, queue_name, prefetch, timeout, self.work_queue)

    @property
    def has_room(self) -> bool:
        """Whether this process may fetch more."""
        is_open = not self.is_draining and self.strangers.has_room
        return is_open and (self.work_queue is None or self.work_queue.has_room)

    def may_fetch(self, queue_name: str) -> bool:
        """Whether it may fetch more of that queue: of what it could not claim, it would only take it from others."""
        return self.has_room and (self.may_claim() or q_name(queue_name) not in self.ledger_queues)

    def longest_rest(self, timeout_ms: int) -> float:
        """How long a consumer may wait before it looks whether it is to stop, in seconds."""
        if self.is_draining:
            return LOOK_AGAIN_SECONDS
        return timeout_ms / 1000 if self.work_queue is None else IDLE_SECONDS

    def held(self, queue_name: str) -> set[str]:
        """The ids in Redis of the messages of a queue that this process holds."""
        return self._held[queue_name]

    def fetch(self, queue_name: str, count: int) -> list[bytes | None]:
        """Fetch up to ``count`` messages; their bodies. Raises redis.RedisError."""
        prefix = f"{self.namespace}:"
        keys = ["__heartbeats__", queue_name, f"__acks__.{self.broker_id}.{queue_name}", f"{queue_name}.msgs"]
        arguments = [current_millis(), self.broker_id, min(count, MOST_FETCHED)]
        fetched = evaluate_once(self.client, self._fetch, [prefix + key for key in keys], arguments)
        return slices(*fetched) if fetched else []

    def undo_preparation(self, messages: Iterable[Any]) -> None:
        """Undo what was done for messages that are put back."""
        deliveries = [message for message in messages if isinstance(message, Delivery)]
        if self.preparation is not None and deliveries:
            self.preparation.undo(deliveries)

    def add_middleware(self, middleware: Middleware, **where: Any) -> None:
        """Add ``middleware``, as Dramatiq's brokers do; the broker's own stays the last."""
        if not where and any(isinstance(each, Hands) for each in self.middleware):
            where = {"before": Hands}
        self._hooks = {}
        super().add_middleware(middleware, **where)
        self._hooks = {}

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call the middleware's hooks as Dramatiq does, but for those that do nothing."""
        name = f"before_{signal}"
        for hook in self._hooks_for(name, self.middleware):
            try:
                hook(self, *args, **kwargs)
            except MiddlewareError:
                raise
            except Exception:
                self.logger.critical("Unexpected failure in %s of %r.", name, hook, exc_info=True)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call the middleware's hooks in reverse as Dramatiq does, but for those that do nothing."""
        name = f"after_{signal}"
        for hook in self._hooks_for(name, reversed(self.middleware)):
            try:
                hook(self, *args, **kwargs)
            except Exception:
                self.logger.critical("Unexpected failure in %s of %r.", name, hook, exc_info=True)

    def _hooks_for(self, name: str, middleware: Iterable[Middleware]) -> list[Callable[..., None]]:
        hooks = self._hooks.get(name)
        if hooks is None:
            nothing = getattr(Middleware, name, None)
            hooks = [getattr(each, name) for each in middleware if getattr(type(each), name, None) is not nothing]
            self._hooks[name] = hooks
        return hooks

    def wake_key(self, queue_name: str) -> str:
        """The list on which consumers of ``queue_name`` wait."""
        return f"{self.namespace}:__wake__.{queue_name}"

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Enqueue one message, after ``delay`` milliseconds if given."""
        message = message.copy(options={"redis_message_id": new_id()})
        if delay is not None:
            message = message.copy(queue_name=dq_name(message.queue_name), options={"eta": current_millis() + delay})
        self.emit_before("enqueue", message, delay)
        self._push({message.queue_name: {message.options["redis_message_id"]: message.encode()}})
        self.emit_after("enqueue", message, delay)
        return message

    def enqueue_many(self, messages: Iterable[Message[Any]]) -> None:
        """Enqueue ``messages`` together, a thousand in a round trip, without the middleware's enqueue hooks."""
        remaining, encode = iter(messages), get_encoder().encode
        while batch := list(islice(remaining, BATCH)):
            bodies: dict[str, dict[str, bytes]] = defaultdict(dict)
            for message in batch:
                redis_id = new_id()
                options = {**message.options, "redis_message_id": redis_id}
                bodies[message.queue_name][redis_id] = encode({**vars(message), "options": options})
            self._push(bodies)

    def _push(self, queues: Mapping[str, Mapping[Any, bytes]]) -> None:
        """Put bodies by their ids on their queues."""
        pipe = self.client.pipeline(transaction=True)
        for queue_name, bodies in queues.items():
            pipe.hset(f"{self.namespace}:{queue_name}.msgs", mapping=bodies)
            pipe.rpush(f"{self.namespace}:{queue_name}", *bodies)
            self._wake(pipe, queue_name, len(bodies))
        pipe.execute()

    def wake(self, queue_name: str, count: int) -> None:
        """Wake consumers of the queue for ``count`` messages."""
        pipe = self.client.pipeline(transaction=True)
        self._wake(pipe, queue_name, count)
        pipe.execute()

    def _wake(self, pipe: Any, queue_name: str, count: int) -> None:
        key = self.wake_key(queue_name)
        pipe.lpush(key, *[b"1"] * min(count, MOST_TOKENS))
        pipe.ltrim(key, 0, MOST_TOKENS - 1)
        pipe.pexpire(key, TOKENS_LAST_MS)

    def recover(self, broker_id: str, queues: Iterable[str] = ()) -> None:
        """Put back at once what a dead process had fetched and not acknowledged, of our queues and of ``queues``."""
        self.client.zadd(f"{self.namespace}:__heartbeats__", {broker_id: 0})
        self.maintain(queues)

    def maintain(self, queues: Iterable[str] = ()) -> None:
        """Put back what processes that are silent for a minute had fetched, and drop dead letters after a week.

        Of our queues, and of ``queues``, which others have.
        """
        known = {*self.queues, *queues}
        queue_names = [*known, *map(dq_name, known)]
        pipe = self.client.pipeline(transaction=False)
        for queue_name in queue_names:
            self.maintain_queue(queue_name, pipe)
        for queue_name, size in zip(queue_names, pipe.execute(), strict=True):
            if size:
                self.wake(queue_name, 1)

    def maintain_queue(self, queue_name: str, client: redis.Redis | None = None) -> None:
        """The same for one queue, which need not be one of ours."""
        options = [self.broker_id, self.heartbeat_timeout, self.dead_message_ttl, 1, self._max_unpack_size()]
        arguments = ["qsize", current_millis(), queue_name, *options]
        self.scripts["dispatch"](keys=[self.namespace], args=arguments, client=client)

    def oldest_run(self, queue_name: str) -> tuple[bool, int | None]:
        """Whether messages wait on the queue, and which run the oldest of them carries, if one is found."""
        ids = cast("list[bytes]", self.client.lrange(f"{self.namespace}:{queue_name}", 0, LOOK_AHEAD - 1))
        if not ids:
            return False, None
        bodies = cast("list[bytes | None]", self.client.hmget(f"{self.namespace}:{queue_name}.msgs", ids))
        return True, next(filter(None, (run_id(body, queue_name) for body in bodies)), None)

    def close(self) -> None:
        """Send what is left to acknowledge, stop listening, and close the connections."""
        self.strangers.stop()
        self.acks.stop()
        self.wakeups.stop()
        self.client.close()


class Hands(Middleware):
    """Gives a worker's threads our work queue, and has idle consumers notice that the worker stops."""

    def before_worker_boot(self, broker: Any, worker: Worker) -> None:
        """Before there are threads and consumers."""
        worker.work_queue = broker.work_queue = WorkQueue(worker.worker_threads)  # type: ignore[assignment]
        broker.is_draining = False

    def before_worker_shutdown(self, broker: Any, worker: Worker) -> None:
        """Fetch no more, and have idle threads notice at once that they are to end."""
        broker.is_draining = True
        broker.wakeups.wake_all()
        broker.work_queue.close()


def slices(lengths: bytes, bodies: bytes) -> list[bytes | None]:
    """The bodies of these lengths; None where there was none."""
    found: list[bytes | None] = []
    start = 0
    for length in map(int, lengths.split(b",")):
        end = start + max(length, 0)
        found.append(bodies[start:end] if length >= 0 else None)
        start = end
    return found
