"""The broker of every Rota process."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, cast
from uuid import uuid4

import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis, dq_name
from dramatiq.message import Message

from core.ledger.releases import Fleet
from core.redis_broker.abandoned import Abandoned
from core.redis_broker.acks import Acks
from core.redis_broker.consumer import Consumer
from core.redis_broker.messages import run_id
from core.redis_broker.strangers import Strangers
from core.redis_broker.wakeups import MOST_TOKENS, TOKENS_LAST_MS, Wakeups

#: How far into a queue to look for the oldest message of the ledger.
LOOK_AHEAD = 100


class RotaBroker(RedisBroker):
    """Dramatiq's Redis broker, with acknowledgements gathered and consumers woken."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        middleware: Sequence[Any] = (),
        ask_fleet: Callable[[], Fleet] = Fleet,
        orphan_seconds: float = 0,
    ) -> None:
        super().__init__(client=client, middleware=list(middleware), maintenance_chance=0)
        #: Set when the worker stops: consumers fetch no more, and put back what they hold.
        self.is_draining = False
        self.wakeups = Wakeups(self)
        self.acks = Acks(self)
        self.strangers = Strangers(self, ask_fleet, orphan_seconds)
        self.abandoned = Abandoned(self)

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

    def recover(self, broker_id: str) -> None:
        """Put back at once what a dead process had fetched and not acknowledged."""
        self.client.zadd(f"{self.namespace}:__heartbeats__", {broker_id: 0})
        self.maintain()

    def maintain(self) -> None:
        """Put back what processes that are silent for a minute had fetched, and drop dead letters after a week."""
        for queue_name in [*self.queues, *self.delay_queues]:
            self.maintain_queue(queue_name)
            self.wake(queue_name, 1)

    def maintain_queue(self, queue_name: str) -> None:
        """The same for one queue, which need not be one of ours."""
        arguments = [self.broker_id, self.heartbeat_timeout, self.dead_message_ttl, 1, self._max_unpack_size()]
        self.scripts["dispatch"](keys=[self.namespace], args=["qsize", current_millis(), queue_name, *arguments])

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
