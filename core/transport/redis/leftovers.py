"""Finds old messages and results in Redis, in small steps, and removes the useless messages and results.

``core/operations/leftovers.py`` decides which of the messages and results may be removed. This module reads only keys
of this namespace, and keys with the prefix of Dramatiq's results. A message that a worker has fetched is never removed,
since the worker will acknowledge it. A key or an id that is not UTF-8, or that contains a NUL, is left alone and
counted, since the ledger cannot store it as text.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import redis
from dramatiq.common import dq_name, q_name

from core.transport.messages import RUN_ID, NotAMessage, read
from core.transport.redis.queues import Queues

#: The number of keys in one step of SCAN.
SCAN_COUNT = 500
#: The number of messages in one step of HSCAN.
BATCH = 200
BODIES = ".msgs"
DEAD_LETTERS = ".XQ"
#: The prefix of Dramatiq's results if they have readable keys (dramatiq 2.2, results/backends/redis.py).
RESULTS = "dramatiq-results"

#: Removes messages from a queue, unless a worker has fetched them. KEYS: list, bodies, urgent messages, heartbeats.
#: ARGV: the beginning and the end of the keys of fetched messages, ids. Returns the removed ids.
REMOVE = """
    local removed, workers = {}, nil
    local function is_fetched(id)
        workers = workers or redis.call('zrange', KEYS[4], 0, -1)
        for _, worker in ipairs(workers) do
            if redis.call('sismember', ARGV[1] .. worker .. ARGV[2], id) == 1 then return true end
        end
        return false
    end
    for index = 3, #ARGV do
        local id = ARGV[index]
        if redis.call('hexists', KEYS[2], id) == 1 and not is_fetched(id) then
            if redis.call('lrem', KEYS[1], 1, id) == 0 then redis.call('zrem', KEYS[3], id) end
            redis.call('hdel', KEYS[2], id)
            removed[#removed + 1] = id
        end
    end
    return removed
"""

#: Removes dead letters. KEYS: dead letters, bodies. ARGV: ids. Returns the removed ids.
REMOVE_DEAD_LETTERS = """
    local removed = {}
    for _, id in ipairs(ARGV) do
        local count = redis.call('zrem', KEYS[1], id) + redis.call('hdel', KEYS[2], id)
        if count > 0 then removed[#removed + 1] = id end
    end
    return removed
"""

#: Removes results that never expire and that were not read or written for ARGV[1] seconds. Returns their keys.
REMOVE_RESULTS = """
    local removed = {}
    for _, key in ipairs(KEYS) do
        if redis.call('pttl', key) == -1 and redis.call('object', 'idletime', key) >= tonumber(ARGV[1]) then
            redis.call('del', key)
            removed[#removed + 1] = key
        end
    end
    return removed
"""


class Place(StrEnum):
    """The place of a message or a result in Redis."""

    QUEUE = "queue"
    DEAD_LETTERS = "dead letters"
    RESULTS = "results"


@dataclass(frozen=True, slots=True)
class Old:
    """A message that was sent, or a dead letter or a result that was stored, before a given time."""

    place: Place
    #: The queue, including the suffix of delayed messages or of dead letters; for a result, an empty text.
    queue: str
    #: The id in Redis; for a result, its key.
    redis_id: str
    #: The message's job, or an empty text if the message cannot be read.
    job: str = ""
    run_id: int | None = None
    #: The time of the message or of the dead letter, in milliseconds since 1970; None if it is not known.
    at_ms: int | None = None
    #: The keys under which Dramatiq would store the message's result.
    result_keys: tuple[str, ...] = ()


class Leftovers:
    """Reads and removes old messages and results of one namespace. All methods raise redis.RedisError."""

    def __init__(self, client: redis.Redis, namespace: str = "dramatiq") -> None:
        self._client = client
        self._queues = Queues(client, namespace=namespace)
        #: The number of keys and ids that were left alone, since they are not text.
        self.no_text = 0
        self._remove = client.register_script(REMOVE)
        self._remove_dead_letters = client.register_script(REMOVE_DEAD_LETTERS)
        self._remove_results = client.register_script(REMOVE_RESULTS)

    def old(self, before_ms: int, idle_seconds: float) -> Iterator[list[Old]]:
        """Yield small batches of messages from before ``before_ms``, and of results that are idle and never expire.

        A batch may be empty, so that the caller can stop between two steps.
        """
        for queue in self._named(BODIES):
            yield from self._messages(queue, before_ms)
        for keys in self._scan(f"{RESULTS}:*"):
            yield [Old(Place.RESULTS, "", key) for key in keys if self._is_stale_result(key, idle_seconds)]

    def remove(self, found: Sequence[Old], idle_seconds: float) -> list[Old]:
        """Remove the messages and results ``found``, and the results of these messages. Return which of ``found`` were
        removed.
        """
        gone: list[Old] = []
        for queue in dict.fromkeys(each.queue for each in found):
            here = [each for each in found if each.queue == queue]
            ids = [each.redis_id for each in here]
            removed = self._remove_from(queue, ids, idle_seconds)
            gone += [each for each in here if each.redis_id in removed]
        keys = [key for each in gone for key in each.result_keys]
        if keys:
            self._client.delete(*keys)
        return gone

    def _remove_from(self, queue: str, ids: list[str], idle_seconds: float) -> set[str]:
        key = self._queues.key(queue)
        if not queue:
            answer = self._remove_results(keys=ids, args=[idle_seconds])
        elif queue.endswith(DEAD_LETTERS):
            answer = self._remove_dead_letters(keys=[key, f"{key}{BODIES}"], args=ids)
        else:
            keys = [key, f"{key}{BODIES}", self._queues.urgent_key(queue), self._queues.key("__heartbeats__")]
            answer = self._remove(keys=keys, args=[self._queues.key("__acks__."), f".{queue}", *ids])
        return {each.decode() for each in cast("list[bytes]", answer)}

    def _named(self, suffix: str) -> list[str]:
        """Return the queues that have bodies, including those of delayed messages and of dead letters."""
        prefix = self._queues.key("")
        keys = {key for found in self._scan(f"{prefix}*{suffix}") for key in found}
        return sorted(key.removeprefix(prefix).removesuffix(suffix) for key in keys)

    def _scan(self, pattern: str) -> Iterator[list[str]]:
        cursor = 0
        while True:
            answer = self._client.scan(cursor, match=pattern, count=SCAN_COUNT)
            cursor, keys = cast("tuple[int, list[bytes]]", answer)
            yield list(self._texts(dict.fromkeys(keys)))
            if cursor == 0:
                return

    def _texts(self, names: Iterable[bytes]) -> Iterator[str]:
        """Yield those of ``names`` that are text. Count the others."""
        for name in names:
            text = text_of(name)
            if text is None:
                self.no_text += 1
            else:
                yield text

    def _messages(self, queue: str, before_ms: int) -> Iterator[list[Old]]:
        key, cursor = f"{self._queues.key(queue)}{BODIES}", 0
        if self._client.type(key) != b"hash":
            return
        while True:
            answer = self._client.hscan(key, cursor, count=BATCH)
            cursor, bodies = cast("tuple[int, dict[bytes, bytes]]", answer)
            yield [each for each in self._read(queue, bodies) if each.at_ms is not None and each.at_ms < before_ms]
            if cursor == 0:
                return

    def _read(self, queue: str, bodies: dict[bytes, bytes]) -> Iterator[Old]:
        ids = list(self._texts(bodies))
        if not queue.endswith(DEAD_LETTERS):
            yield from (found for each in ids if (found := message(queue, each, bodies[each.encode()])))
            return
        times = self._client.zmscore(self._queues.key(queue), ids) if ids else []
        for redis_id, at in zip(ids, times, strict=True):
            yield dead_letter(queue, redis_id, bodies[redis_id.encode()], at)

    def _is_stale_result(self, key: str, idle_seconds: float) -> bool:
        """Return whether a result never expires and has been idle for long. With some eviction policies, Redis does not
        know the idle time, and no result counts as idle.
        """
        try:
            is_kept = self._client.type(key) == b"list" and self._client.pttl(key) == -1
            return is_kept and cast("int", self._client.object("idletime", key)) >= idle_seconds
        except redis.ResponseError:
            return False


def text_of(name: bytes) -> str | None:
    """Return a key or an id as text, or None if it is not UTF-8 or contains a NUL."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def message(queue: str, redis_id: str, body: bytes) -> Old | None:
    """Return a message on a queue. Return None for a body that cannot be read, since it may belong to another
    service.
    """
    try:
        found = read(body, queue)
        told = described(found)
    except NotAMessage:
        return None
    sent_ms = found.message_timestamp
    if type(sent_ms) is not int or sent_ms < 0 or redis_id != found.options["redis_message_id"]:
        return None
    return Old(Place.QUEUE, queue, redis_id, **told, at_ms=sent_ms)


def dead_letter(queue: str, redis_id: str, body: bytes, at: float | None) -> Old:
    """Return a dead letter, whose body may have any content. ``at`` is its score, in milliseconds."""
    told: dict[str, Any] = {}
    for name in (queue.removesuffix(DEAD_LETTERS), dq_name(queue.removesuffix(DEAD_LETTERS))):
        try:
            told = described(read(body, name))
        except NotAMessage:
            continue
    at_ms = int(at) if at is not None and 0 <= at < math.inf else None
    return Old(Place.DEAD_LETTERS, queue, redis_id, **told, at_ms=at_ms)


def described(found: Any) -> dict[str, Any]:
    """Return the job, the run and the result's keys of a message. Raises NotAMessage if its names are not text."""
    if any(text_of(name.encode(errors="surrogatepass")) is None for name in (found.actor_name, found.message_id)):
        raise NotAMessage("not ours")
    name = f"{RESULTS}:{q_name(found.queue_name)}:{found.actor_name}:{found.message_id}"
    hashed = hashlib.md5(name.encode("utf-8"), usedforsecurity=False).hexdigest()
    return {"job": found.actor_name, "run_id": found.options.get(RUN_ID), "result_keys": (name, hashed)}
