"""The queues in Redis: their keys, and the commands and scripts on them. It has no thread.

All methods raise redis.RedisError if Redis cannot be reached or refuses.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import redis
from dramatiq.brokers.redis import DEFAULT_DEAD_MESSAGE_TTL, DEFAULT_HEARTBEAT_TIMEOUT, _scripts
from dramatiq.common import current_millis, dq_name, q_name, xq_name
from dramatiq.message import Message, get_encoder

from core.transport.messages import new_id, run_id
from core.transport.redis.connection import evaluate_once

#: How many messages of a queue to read to find the oldest run.
LOOK_AHEAD = 100
#: Messages that are enqueued in one round trip.
BATCH = 1000
#: The most values that a script can unpack.
MOST_UNPACKED = 1000
#: The most tokens of a queue: one woken consumer fetches many messages.
MOST_TOKENS = 64
#: After this time tokens are useless, since every process has searched its queues.
TOKENS_LAST_MS = 5_000

#: Dramatiq's own "fetch" (brokers/redis/dispatch.lua) in fewer steps. It returns all bodies as one string, which
#: redis-py parses much faster: KEYS heartbeats, list, acks, bodies; ARGV time, broker, how many.
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
#: Dramatiq's "ack" for many messages; ignores those that were requeued meanwhile.
ACKNOWLEDGE = """
for _, id in ipairs(ARGV) do
    if redis.call('srem', KEYS[1], id) == 1 then redis.call('hdel', KEYS[2], id) end
end
"""
#: Dramatiq's "nack" for many messages: KEYS acks, bodies, dead letters and their bodies; ARGV time, ids.
DEAD_LETTER = """
for index = 2, #ARGV do
    if redis.call('srem', KEYS[1], ARGV[index]) == 1 then
        local body = redis.call('hget', KEYS[2], ARGV[index])
        if body then
            redis.call('zadd', KEYS[3], ARGV[1], ARGV[index])
            redis.call('hset', KEYS[4], ARGV[index], body)
            redis.call('hdel', KEYS[2], ARGV[index])
        end
    end
end
"""
#: Sends this broker's heartbeat, and returns the queues that have messages: KEYS heartbeats, queues; ARGV time, broker.
LOOK = """
redis.call('zadd', KEYS[1], ARGV[1], ARGV[2])
local found = {}
for index = 2, #KEYS do
    if redis.call('exists', KEYS[index]) == 1 then found[#found + 1] = index - 2 end
end
return found
"""


class Queues:
    """The queues of one namespace, for the process whose id in Redis is ``broker_id``."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        broker_id: str | None = None,
        namespace: str = "dramatiq",
        heartbeat_timeout_ms: int = DEFAULT_HEARTBEAT_TIMEOUT,
        dead_message_ttl_ms: int = DEFAULT_DEAD_MESSAGE_TTL,
    ) -> None:
        """Make the object; it connects on first use."""
        self.client = client
        self.broker_id = broker_id or new_id()
        self.namespace = namespace
        self._limits = [heartbeat_timeout_ms, dead_message_ttl_ms]
        self._declared: set[str] = set()
        self._held: dict[str, set[str]] = defaultdict(set)
        self._dispatch = client.register_script(_scripts["dispatch"])
        self._fetch = client.register_script(FETCH)
        self._acknowledge = client.register_script(ACKNOWLEDGE)
        self._dead_letter = client.register_script(DEAD_LETTER)
        self._look = client.register_script(LOOK)

    def key(self, name: str) -> str:
        """The key of a queue, or another key of the namespace."""
        return f"{self.namespace}:{name}"

    def wake_key(self, queue_name: str) -> str:
        """The list on which consumers of ``queue_name`` wait."""
        return self.key(f"__wake__.{queue_name}")

    def _acks_key(self, queue_name: str) -> str:
        return self.key(f"__acks__.{self.broker_id}.{queue_name}")

    def declare(self, queue_name: str) -> None:
        """Add a queue to those of ``maintain`` and ``recover``."""
        self._declared.add(queue_name)

    def held(self, queue_name: str) -> set[str]:
        """The ids in Redis of the messages of a queue that this process holds; its consumers change the set."""
        return self._held[queue_name]

    def fetched(self, queue_name: str) -> set[str]:
        """The ids of the messages that Redis has assigned to this process."""
        ids = cast("set[bytes]", self.client.smembers(self._acks_key(queue_name)))
        return {redis_id.decode(errors="replace") for redis_id in ids}

    def fetch(self, queue_name: str, count: int) -> list[bytes | None]:
        """Fetch up to ``count`` messages; return their bodies. It never retries, which could lose messages."""
        prefix = f"{self.namespace}:"
        keys = ["__heartbeats__", queue_name, f"__acks__.{self.broker_id}.{queue_name}", f"{queue_name}.msgs"]
        arguments = [current_millis(), self.broker_id, min(count, MOST_UNPACKED)]
        fetched = evaluate_once(self.client, self._fetch, [prefix + key for key in keys], arguments)
        return slices(*fetched) if fetched else []

    def acknowledge(self, queue_name: str, redis_ids: Collection[str]) -> None:
        """Acknowledge fetched messages."""
        if redis_ids:
            self._acknowledge(keys=[self._acks_key(queue_name), self.key(f"{queue_name}.msgs")], args=[*redis_ids])

    def dead_letter(self, queue_name: str, redis_ids: Collection[str]) -> None:
        """Move fetched messages to the dead-letter queue, where they stay for a week."""
        if redis_ids:
            dead = self.key(xq_name(q_name(queue_name)))
            keys = [self._acks_key(queue_name), self.key(f"{queue_name}.msgs"), dead, f"{dead}.msgs"]
            self._dead_letter(keys=keys, args=[current_millis(), *redis_ids])

    def dead_letter_body(self, queue_name: str, body: bytes | None) -> None:
        """Dead-letter the fetched messages with this body, whose ids are not known."""
        ids = list(cast("set[bytes]", self.client.smembers(self._acks_key(queue_name))))
        if ids:
            bodies = cast("list[bytes | None]", self.client.hmget(self.key(f"{queue_name}.msgs"), ids))
            same = [redis_id for redis_id, each in zip(ids, bodies, strict=True) if each == body]
            self.dead_letter(queue_name, cast("list[Any]", same))

    def requeue(self, queue_name: str, redis_ids: Collection[str]) -> None:
        """Put fetched messages back at the end of their queue, without waking a consumer."""
        if redis_ids:
            self._do("requeue", queue_name, *redis_ids)

    def enqueue_many(self, messages: Iterable[Message[Any]]) -> None:
        """Enqueue ``messages``, a thousand per round trip, without the middleware's enqueue hooks."""
        remaining, encode = iter(messages), get_encoder().encode
        while batch := list(islice(remaining, BATCH)):
            bodies: dict[str, dict[str, bytes]] = defaultdict(dict)
            for message in batch:
                redis_id = new_id()
                options = {**message.options, "redis_message_id": redis_id}
                bodies[message.queue_name][redis_id] = encode({**vars(message), "options": options})
            self.push(bodies)

    def push(self, queues: Mapping[str, Mapping[Any, bytes]]) -> None:
        """Put bodies, given by id, on their queues, and wake consumers."""
        pipe = self.client.pipeline(transaction=True)
        for queue_name, bodies in queues.items():
            pipe.hset(self.key(f"{queue_name}.msgs"), mapping=bodies)
            pipe.rpush(self.key(queue_name), *bodies)
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

    def wait_for_token(self, queue_names: Iterable[str], seconds: float) -> str | None:
        """Wait for a token of one of the queues, and take it; return the queue's name."""
        waiting = {self.wake_key(name): name for name in queue_names}
        popped = cast("tuple[bytes, bytes] | None", self.client.blpop(list(waiting), seconds))
        return waiting[popped[0].decode()] if popped else None

    def look(self, queue_names: Sequence[str], client: redis.Redis | None = None) -> list[str]:
        """Send this broker's heartbeat; return the queues that have messages."""
        keys = [self.key("__heartbeats__"), *map(self.key, queue_names)]
        found = evaluate_once(client or self.client, self._look, keys, [current_millis(), self.broker_id])
        return [queue_names[index] for index in found]

    def recover(self, broker_id: str, queues: Iterable[str] = ()) -> None:
        """Requeue at once a dead process's messages, of our queues and of ``queues``."""
        self.client.zadd(self.key("__heartbeats__"), {broker_id: 0})
        self.maintain(queues)

    def maintain(self, queues: Iterable[str] = ()) -> None:
        """Requeue messages of processes without a heartbeat for a minute, and delete dead letters after a week.

        It does this for our queues, and for ``queues`` of other processes.
        """
        known = {*self._declared, *queues}
        queue_names = [*known, *map(dq_name, known)]
        pipe = self.client.pipeline(transaction=False)
        for queue_name in queue_names:
            self.maintain_queue(queue_name, pipe)
        for queue_name, size in zip(queue_names, pipe.execute(), strict=True):
            if size:
                self.wake(queue_name, 1)

    def maintain_queue(self, queue_name: str, client: redis.Redis | None = None) -> None:
        """Maintain one queue; it may belong to another process."""
        self._do("qsize", queue_name, client=client, maintenance=1)

    def _do(
        self, command: str, queue_name: str, *arguments: str, client: redis.Redis | None = None, maintenance: int = 0
    ) -> None:
        """Run one of Dramatiq's own commands."""
        options: list[str | int] = [queue_name, self.broker_id, *self._limits, maintenance, MOST_UNPACKED]
        self._dispatch(keys=[self.namespace], args=[command, current_millis(), *options, *arguments], client=client)

    def oldest_runs(self, queue_name: str) -> tuple[bool, list[int]]:
        """Whether messages are waiting on the queue, and the runs of the oldest messages that have one."""
        ids = cast("list[bytes]", self.client.lrange(self.key(queue_name), 0, LOOK_AHEAD - 1))
        if not ids:
            return False, []
        bodies = cast("list[bytes | None]", self.client.hmget(self.key(f"{queue_name}.msgs"), ids))
        return True, [found for body in bodies if (found := run_id(body, queue_name)) is not None]


def slices(lengths: bytes, bodies: bytes) -> list[bytes | None]:
    """Split ``bodies`` by ``lengths``; None for a missing body."""
    found: list[bytes | None] = []
    start = 0
    for length in map(int, lengths.split(b",")):
        end = start + max(length, 0)
        found.append(bodies[start:end] if length >= 0 else None)
        start = end
    return found
