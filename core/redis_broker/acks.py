"""Acknowledgements, gathered and sent together."""

import threading
from collections import deque
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING

import redis
from dramatiq.common import current_millis, q_name, xq_name

from core.redis_broker.client import SOCKET_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from core.redis_broker.broker import RotaBroker

#: Acknowledgements sent in one round trip.
MOST_ACKS = 500
#: How long the first waits for others, in seconds.
GATHER_SECONDS = 0.005
SEND_AGAIN_SECONDS = 0.5
#: Dramatiq's own "ack" (brokers/redis/dispatch.lua), for many: what is no longer ours to acknowledge is left alone.
ACK_MANY = """
for _, id in ipairs(ARGV) do
    if redis.call('srem', KEYS[1], id) == 1 then redis.call('hdel', KEYS[2], id) end
end
"""
#: Its "nack", for many: KEYS acks, bodies, dead letters and their bodies; ARGV time, ids.
NACK_MANY = """
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


class Acks:
    """One thread that sends the acknowledgements of all consumers of this process, as many together as have come."""

    def __init__(self, broker: "RotaBroker") -> None:
        self._broker = broker
        self._acks = broker.client.register_script(ACK_MANY)
        self._nacks = broker.client.register_script(NACK_MANY)
        #: Queue, id in Redis, and whether it goes to the dead letters.
        self._waiting: deque[tuple[str, str, bool]] = deque()
        self._come = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, queue_name: str, redis_id: str, *, is_dead: bool = False) -> None:
        """Acknowledge a message soon, or move it to the dead letters."""
        self._waiting.append((queue_name, redis_id, is_dead))
        if not self._come.is_set():
            self._come.set()
        if self._thread is None:
            self._start()

    def waiting(self, queue_name: str) -> set[str]:
        """The messages of a queue that are done and whose acknowledgement is not sent yet."""
        return {redis_id for name, redis_id, _ in self._waiting.copy() if name == queue_name}

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
        while not self._stopping.is_set() or self._waiting:
            self._come.wait()
            self._stopping.wait(GATHER_SECONDS)
            self._come.clear()
            try:
                self._send_all()
            except (redis.RedisError, OSError) as error:
                self._broker.trouble.met(error)
                if self._stopping.wait(SEND_AGAIN_SECONDS):
                    return
                self._come.set()

    def _send_all(self) -> None:
        while self._waiting:
            batch = list(islice(self._waiting.copy(), MOST_ACKS))
            for (queue_name, is_dead), group in groupby(sorted(batch, key=itemgetter(0, 2)), key=itemgetter(0, 2)):
                self._send(queue_name, [redis_id for _, redis_id, _ in group], is_dead=is_dead)
            for _ in batch:
                self._waiting.popleft()

    def _send(self, queue_name: str, redis_ids: list[str], *, is_dead: bool) -> None:
        namespace, broker_id = self._broker.namespace, self._broker.broker_id
        keys = [f"{namespace}:__acks__.{broker_id}.{queue_name}", f"{namespace}:{queue_name}.msgs"]
        if not is_dead:
            self._acks(keys=keys, args=redis_ids)
            return
        dead = f"{namespace}:{xq_name(q_name(queue_name))}"
        self._nacks(keys=[*keys, dead, f"{dead}.msgs"], args=[current_millis(), *redis_ids])
