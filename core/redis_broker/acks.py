"""Acknowledgements, gathered and sent together."""

import logging
import threading
from collections import deque
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import redis

from core.logs import Complaint
from core.redis_broker.client import SOCKET_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from core.redis_broker.broker import RotaBroker

logger = logging.getLogger(__name__)

#: Acknowledgements sent in one round trip.
MOST_ACKS = 500
SEND_AGAIN_SECONDS = 0.5
#: Dramatiq's own "ack" (brokers/redis/dispatch.lua), for many: what is no longer ours to acknowledge is left alone.
ACK_MANY = """
for _, id in ipairs(ARGV) do
    if redis.call('srem', KEYS[1], id) == 1 then redis.call('hdel', KEYS[2], id) end
end
"""


class Acks:
    """One thread that sends the acknowledgements of all consumers of this process, as many together as have come."""

    def __init__(self, broker: "RotaBroker") -> None:
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
                if self._stopping.wait(SEND_AGAIN_SECONDS):
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
