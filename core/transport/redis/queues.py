"""The queues in Redis: their keys, and the commands and scripts that use them. This module starts no thread.

All methods raise redis.RedisError if Redis cannot be reached or refuses.
"""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import redis
from dramatiq.brokers.redis import DEFAULT_DEAD_MESSAGE_TTL, DEFAULT_HEARTBEAT_TIMEOUT, _scripts
from dramatiq.common import current_millis, dq_name, q_name, xq_name
from dramatiq.message import Message, get_encoder

from core.jobs.job import HIGHEST_PRIORITY
from core.ledger.carrier import Flow
from core.transport.messages import new_id, run_id
from core.transport.redis import urgent
from core.transport.redis.connection import evaluate_once
from core.transport.redis.urgent import Arrivals, bounds, is_urgent, redis_id_for

#: At most this many messages of a queue are read to find the oldest run.
LOOK_AHEAD = 100
#: The number of messages that are enqueued in one round trip.
BATCH = 1000
#: The most values that a script can unpack.
MOST_UNPACKED = 1000
#: The most tokens of a queue. A few are enough, since one woken consumer fetches many messages.
MOST_TOKENS = 64
#: A window that the dispatcher has stored is valid for this many milliseconds.
WINDOWS_LAST_MS = 60_000
#: A window without room is valid for this many milliseconds.
FULL_LASTS_MS = 2_000
#: A token expires after this time. By then every process has searched its queues, so the token is useless.
TOKENS_LAST_MS = 5_000

#: One fetch in this many begins with the oldest message of the list, so that urgent messages do not delay the others
#: for ever.
OLDEST_FIRST_EVERY = 10

#: The key of a hash. It has, for each queue, how many messages of the queue's list were ever fetched.
FETCHED = "__fetched__"

#: The end of a script that fetches ``ids``. It returns all bodies as one string, which redis-py parses much faster.
BODIES = """
if #ids == 0 then return {} end
redis.call('sadd', KEYS[3], unpack(ids))
local bodies, lengths = redis.call('hmget', KEYS[4], unpack(ids)), {}
for index = 1, #ids do
    lengths[index] = bodies[index] and #bodies[index] or -1
    bodies[index] = bodies[index] or ''
end
return {table.concat(lengths, ','), table.concat(bodies)}
"""
#: Dramatiq's own "fetch" (brokers/redis/dispatch.lua) in fewer steps. It takes urgent messages first, or last if the
#: fourth argument is 1. KEYS: heartbeats, list, acks, bodies, urgent, ``FETCHED``. ARGV: time, broker, how many,
#: whether urgent messages come last, queue.
FETCH = (
    """
redis.call('zadd', KEYS[1], ARGV[1], ARGV[2])
local most, ids = tonumber(ARGV[3]), {}
local function take_urgent()
    local popped = redis.call('zpopmin', KEYS[5], most - #ids)
    for index = 1, #popped, 2 do ids[#ids + 1] = popped[index] end
end
if ARGV[4] == '0' then take_urgent() end
if #ids == 0 then
    ids = redis.call('lrange', KEYS[2], 0, most - 1)
    redis.call('ltrim', KEYS[2], #ids, -1)
    if #ids > 0 then redis.call('hincrby', KEYS[6], ARGV[5], #ids) end
elseif #ids < most then
    local oldest = redis.call('lrange', KEYS[2], 0, most - #ids - 1)
    redis.call('ltrim', KEYS[2], #oldest, -1)
    if #oldest > 0 then redis.call('hincrby', KEYS[6], ARGV[5], #oldest) end
    for _, id in ipairs(oldest) do ids[#ids + 1] = id end
end
if ARGV[4] == '1' and #ids < most then take_urgent() end
"""
    + BODIES
)
#: Fetches only urgent messages. KEYS: the first five of ``FETCH``. ARGV: time, broker, how many, the highest score.
FETCH_URGENT = (
    """
redis.call('zadd', KEYS[1], ARGV[1], ARGV[2])
local ids = redis.call('zrangebyscore', KEYS[5], '-inf', ARGV[4], 'LIMIT', 0, ARGV[3])
if #ids > 0 then redis.call('zrem', KEYS[5], unpack(ids)) end
"""
    + BODIES
)
#: Removes messages from the end of a list. KEYS: list, bodies. ARGV: ids. Returns the ids that were on the list.
TAKE_BACK = """
local taken = {}
for _, id in ipairs(ARGV) do
    if redis.call('lrem', KEYS[1], -1, id) == 1 then
        redis.call('hdel', KEYS[2], id)
        taken[#taken + 1] = id
    end
end
return taken
"""
#: Dramatiq's "ack" for many messages. It ignores messages that were requeued meanwhile.
ACKNOWLEDGE = """
for _, id in ipairs(ARGV) do
    if redis.call('srem', KEYS[1], id) == 1 then redis.call('hdel', KEYS[2], id) end
end
"""
#: Dramatiq's "nack" for many messages. KEYS: acks, bodies, dead letters, their bodies. ARGV: time, ids.
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
#: Sends this broker's heartbeat, and returns the queues that have messages. KEYS: heartbeats, the list and the sorted
#: set of each queue. ARGV: time, broker.
LOOK = """
redis.call('zadd', KEYS[1], ARGV[1], ARGV[2])
local found = {}
for index = 2, #KEYS, 2 do
    if redis.call('exists', KEYS[index], KEYS[index + 1]) > 0 then found[#found + 1] = (index - 2) / 2 end
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
        """No connection is opened before the first command."""
        self.client = client
        self.broker_id = broker_id or new_id()
        self.namespace = namespace
        self._limits = [heartbeat_timeout_ms, dead_message_ttl_ms]
        self._declared: set[str] = set()
        self._held: dict[str, set[str]] = defaultdict(set)
        self._dispatch = client.register_script(_scripts["dispatch"])
        self._fetch = client.register_script(FETCH)
        self._fetch_urgent = client.register_script(FETCH_URGENT)
        self._take_back = client.register_script(TAKE_BACK)
        self._acknowledge = client.register_script(ACKNOWLEDGE)
        self._dead_letter = client.register_script(DEAD_LETTER)
        self._look = client.register_script(LOOK)
        self._requeue_urgent = client.register_script(urgent.REQUEUE)
        self._recover_urgent = client.register_script(urgent.RECOVER)
        self._demote = client.register_script(urgent.DEMOTE)
        self._arrivals = Arrivals()
        self._lengths: dict[tuple[str, bool], int] = {}
        self._fetches = itertools.count(1)

    def key(self, name: str) -> str:
        """Return the key of a queue, or another key of the namespace."""
        return f"{self.namespace}:{name}"

    def wake_key(self, queue_name: str) -> str:
        """Return the key of the list on which consumers of ``queue_name`` wait."""
        return self.key(f"__wake__.{queue_name}")

    def urgent_key(self, queue_name: str) -> str:
        """Return the key of the sorted set with the urgent messages of ``queue_name``."""
        return self.key(f"__urgent__.{queue_name}")

    def window_key(self, queue_name: str) -> str:
        """Return the key that holds how many messages may wait on ``queue_name``."""
        return self.key(f"__window__.{queue_name}")

    def _acks_key(self, queue_name: str) -> str:
        return self.key(f"__acks__.{self.broker_id}.{queue_name}")

    def declare(self, queue_name: str) -> None:
        """Add a queue to the queues that ``maintain`` and ``recover`` handle."""
        self._declared.add(queue_name)

    def held(self, queue_name: str) -> set[str]:
        """Return the ids in Redis of the messages of a queue that this process holds.

        The queue's consumers change the returned set.
        """
        return self._held[queue_name]

    def fetched(self, queue_name: str) -> set[str]:
        """Return the ids of the messages that Redis has assigned to this process."""
        ids = cast("set[bytes]", self.client.smembers(self._acks_key(queue_name)))
        return {redis_id.decode(errors="replace") for redis_id in ids}

    def fetch(self, queue_name: str, most: int, least_priority: int = 0) -> list[bytes | None]:
        """Fetch up to ``most`` messages, urgent messages first. Return their bodies.

        One fetch in ten begins with the oldest message without a priority. If ``least_priority`` is not 0, only
        messages of at least this priority are fetched. A fetch is never retried, since a retry could lose messages.
        """
        prefix = f"{self.namespace}:"
        keys = ["__heartbeats__", queue_name, f"__acks__.{self.broker_id}.{queue_name}", f"{queue_name}.msgs"]
        keys.append(f"__urgent__.{queue_name}")
        if least_priority:
            script, last = self._fetch_urgent, bounds(least_priority)[1]
        else:
            script, last = self._fetch, int(next(self._fetches) % OLDEST_FIRST_EVERY == 0)
            keys.append(FETCHED)
        arguments = [current_millis(), self.broker_id, min(most, MOST_UNPACKED), last, queue_name]
        fetched = evaluate_once(self.client, script, [prefix + key for key in keys], arguments)
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
        """Put fetched messages back at the end of their queue, without waking a consumer.

        An urgent message is put behind the other messages of the same priority.
        """
        urgent_ids = [redis_id for redis_id in redis_ids if is_urgent(redis_id)]
        if urgent_ids:
            keys = [self._acks_key(queue_name), self.key(f"{queue_name}.msgs"), self.urgent_key(queue_name)]
            places = self._arrivals.scores(urgent_ids).items()
            self._requeue_urgent(keys=keys, args=[value for place in places for value in place])
        others = [redis_id for redis_id in redis_ids if not is_urgent(redis_id)]
        if others:
            self._do("requeue", queue_name, *others)

    def enqueue_many(self, messages: Iterable[Message[Any]]) -> None:
        """Enqueue ``messages``, a thousand per round trip, without the middleware's enqueue hooks."""
        remaining, encode = iter(messages), get_encoder().encode
        while batch := list(itertools.islice(remaining, BATCH)):
            bodies: dict[str, dict[str, bytes]] = defaultdict(dict)
            for message in batch:
                redis_id = redis_id_for(message.options)
                options = {**message.options, "redis_message_id": redis_id}
                bodies[message.queue_name][redis_id] = encode({**vars(message), "options": options})
            self.push(bodies)

    def push(self, queues: Mapping[str, Mapping[Any, bytes]]) -> None:
        """Put bodies, given by id, on their queues, and wake consumers."""
        pipe = self.client.pipeline(transaction=True)
        lengths: dict[tuple[str, bool], int] = {}
        for queue_name, bodies in queues.items():
            pipe.hset(self.key(f"{queue_name}.msgs"), mapping=bodies)
            urgent_ids = [redis_id for redis_id in bodies if is_urgent(redis_id)]
            if urgent_ids:
                pipe.zadd(self.urgent_key(queue_name), self._arrivals.scores(urgent_ids))
                lengths[queue_name, True] = len(pipe)
                pipe.zcard(self.urgent_key(queue_name))
            if len(urgent_ids) < len(bodies):
                lengths[queue_name, False] = len(pipe)
                pipe.rpush(self.key(queue_name), *(each for each in bodies if not is_urgent(each)))
            self._wake(pipe, queue_name, len(bodies))
        answers = pipe.execute()
        self._lengths.update({name: answers[place] for name, place in lengths.items()})

    def length_seen(self, queue_name: str, *, are_urgent: bool) -> int:
        """Return how many messages were waiting when this process last sent a message or called ``window``."""
        return self._lengths.get((queue_name, are_urgent), 0)

    def window(self, queue_name: str, *, are_urgent: bool) -> tuple[int | None, int]:
        """Return how many messages may wait on the queue, and how many are waiting.

        The first number is None if no dispatcher has stored how many messages may wait.
        """
        pipe = self.client.pipeline(transaction=False)
        pipe.get(self.window_key(queue_name))
        if are_urgent:
            pipe.zcard(self.urgent_key(queue_name))
        else:
            pipe.llen(self.key(queue_name))
        most, length = pipe.execute()
        self._lengths[queue_name, are_urgent] = length
        return (None if most is None or are_urgent else int(most)), length

    def tell_window(self, queue_name: str, most: int) -> None:
        """Store how many messages may wait on the queue."""
        self.client.set(self.window_key(queue_name), most, px=WINDOWS_LAST_MS if most else FULL_LASTS_MS)

    def flows(self, queue_names: Sequence[str]) -> list[Flow]:
        """Return, for each queue, how many messages wait in its list, and how many messages of the list were ever
        fetched.
        """
        if not queue_names:
            return []
        pipe = self.client.pipeline(transaction=False)
        pipe.hmget(self.key(FETCHED), queue_names)
        for queue_name in queue_names:
            pipe.llen(self.key(queue_name))
        fetched, *lengths = pipe.execute()
        return [Flow(length, int(count or 0)) for length, count in zip(lengths, fetched, strict=True)]

    def urgent_waiting(self, queue_name: str, priority: int) -> int:
        """Return the number of waiting messages with this priority or a higher one."""
        return self.client.zcount(self.urgent_key(queue_name), "-inf", bounds(priority)[1])

    def newest_runs(self, queue_name: str, most: int) -> dict[bytes, int]:
        """Return the runs of the newest ``most`` messages of the list, by the ids of the messages, the newest first."""
        ids = cast("list[bytes]", self.client.lrange(self.key(queue_name), -min(most, MOST_UNPACKED), -1))
        return self._runs_of(queue_name, ids[::-1])

    def take_back(self, queue_name: str, most: int) -> list[int]:
        """Remove messages of runs from the newest ``most`` messages of the list. Return these runs, the newest
        first.
        """
        runs = self.newest_runs(queue_name, most)
        if not runs:
            return []
        keys = [self.key(queue_name), self.key(f"{queue_name}.msgs")]
        taken = cast("list[bytes]", self._take_back(keys=keys, args=list(runs)))
        return [runs[each] for each in taken]

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
        """Wait for a token of one of the queues, and take it. Return the queue's name."""
        waiting = {self.wake_key(name): name for name in queue_names}
        popped = cast("tuple[bytes, bytes] | None", self.client.blpop(list(waiting), seconds))
        return waiting[popped[0].decode()] if popped else None

    def look(self, queue_names: Sequence[str], client: redis.Redis | None = None) -> list[str]:
        """Send this broker's heartbeat. Return the queues that have messages."""
        keys = [self.key("__heartbeats__")]
        for name in queue_names:
            keys += [self.key(name), self.urgent_key(name)]
        found = evaluate_once(client or self.client, self._look, keys, [current_millis(), self.broker_id])
        return [queue_names[index] for index in found]

    def recover(self, broker_id: str, queues: Iterable[str] = ()) -> None:
        """Requeue a dead process's messages at once, on this process's queues and on ``queues``."""
        self.client.zadd(self.key("__heartbeats__"), {broker_id: 0})
        self.maintain(queues)

    def maintain(self, queues: Iterable[str] = ()) -> None:
        """Requeue messages of processes that sent no heartbeat for a minute, and delete dead letters after a week.

        Do this for the queues of this process, and for ``queues`` of other processes.
        """
        known = {*self._declared, *queues}
        queue_names = [*known, *map(dq_name, known)]
        pipe = self.client.pipeline(transaction=False)
        for queue_name in queue_names:
            self.maintain_queue(queue_name, pipe)
        sizes = pipe.execute()[1::2]
        for queue_name, size in zip(queue_names, sizes, strict=True):
            if size:
                self.wake(queue_name, 1)

    def maintain_queue(self, queue_name: str, client: redis.Redis | None = None) -> None:
        """Do the work of ``maintain`` for one queue, which may belong to another process."""
        now = current_millis()
        acks = self.key("__acks__."), f".{queue_name}"
        keys = [self.key("__heartbeats__"), self.key(f"{queue_name}.msgs"), self.urgent_key(queue_name)]
        arguments: list[str | int] = [now - self._limits[0], now, urgent.LEVEL, HIGHEST_PRIORITY, *acks]
        self._recover_urgent(keys=keys, args=arguments, client=client)
        self._do("qsize", queue_name, client=client, maintenance=1)

    def _do(
        self, command: str, queue_name: str, *arguments: str, client: redis.Redis | None = None, maintenance: int = 0
    ) -> None:
        """Run one of Dramatiq's own commands."""
        options: list[str | int] = [queue_name, self.broker_id, *self._limits, maintenance, MOST_UNPACKED]
        self._dispatch(keys=[self.namespace], args=[command, current_millis(), *options, *arguments], client=client)

    def oldest_runs(self, queue_name: str) -> tuple[bool, list[int]]:
        """Return whether messages are waiting on the queue, and the runs of the oldest messages that have a run."""
        return self._runs(queue_name, self.client.lrange(self.key(queue_name), 0, LOOK_AHEAD - 1))

    def oldest_urgent_runs(self, queue_name: str, priority: int) -> tuple[bool, list[int]]:
        """Return the same as ``oldest_runs``, for the messages of ``priority``."""
        lowest, highest = bounds(priority)
        return self._runs(
            queue_name,
            self.client.zrangebyscore(self.urgent_key(queue_name), lowest, highest, start=0, num=LOOK_AHEAD),
        )

    def demote(self, queue_name: str) -> int:
        """Move up to a thousand urgent messages to the end of the list. Return how many."""
        keys = [self.urgent_key(queue_name), self.key(queue_name)]
        return int(cast("int", self._demote(keys=keys, args=[BATCH])))

    def drop_urgent(self, queue_name: str) -> None:
        """Drop the urgent messages of a queue. The caller has already deleted their bodies."""
        self.client.delete(self.urgent_key(queue_name), self.urgent_key(dq_name(queue_name)))

    def _runs(self, queue_name: str, found: Any) -> tuple[bool, list[int]]:
        ids = cast("list[bytes]", found)
        if not ids:
            return False, []
        return True, list(self._runs_of(queue_name, ids).values())

    def _runs_of(self, queue_name: str, ids: Sequence[bytes]) -> dict[bytes, int]:
        """Return the runs of the messages ``ids``, by the ids. Leave out messages without a run."""
        if not ids:
            return {}
        bodies = cast("list[bytes | None]", self.client.hmget(self.key(f"{queue_name}.msgs"), ids))
        found = ((redis_id, run_id(body, queue_name)) for redis_id, body in zip(ids, bodies, strict=True))
        return {redis_id: each for redis_id, each in found if each is not None}


def slices(lengths: bytes, bodies: bytes) -> list[bytes | None]:
    """Split ``bodies`` by ``lengths``. A missing body becomes None."""
    found: list[bytes | None] = []
    start = 0
    for length in map(int, lengths.split(b",")):
        end = start + max(length, 0)
        found.append(bodies[start:end] if length >= 0 else None)
        start = end
    return found
