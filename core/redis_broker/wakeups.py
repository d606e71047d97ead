"""Waking consumers whose queue was empty, by tokens that producers leave beside their messages."""

import logging
import threading
from typing import TYPE_CHECKING, cast

import redis

if TYPE_CHECKING:
    from core.redis_broker.broker import RotaBroker
    from core.redis_broker.consumer import Consumer

logger = logging.getLogger(__name__)

#: Below the client's socket time-out.
BLOCK_SECONDS = 2.0
#: After a lost connection, and while no consumer has room.
LISTEN_AGAIN_SECONDS = 0.5
#: Tokens beyond this are cut off: a woken consumer fetches a windowful.
MOST_TOKENS = 64
#: Tokens that nobody took are worthless by then: everybody has polled.
TOKENS_LAST_MS = 5_000


class Wakeups:
    """One thread that waits for tokens on behalf of all consumers of this process."""

    def __init__(self, broker: "RotaBroker") -> None:
        self._broker = broker
        self._consumers: dict[str, Consumer] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def add(self, consumer: "Consumer") -> None:
        """Wake ``consumer`` from now on."""
        with self._lock:
            self._consumers[self._broker.wake_key(consumer.queue_name)] = consumer
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rota-wakeups", daemon=True)
                self._thread.start()

    def remove(self, consumer: "Consumer") -> None:
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
            # AttributeError: redis-py's, when this connection is closed under the read, as at the end of a process.
            except (redis.RedisError, OSError, ValueError, AttributeError) as error:
                logger.debug("wakeups.lost: %s (consumers poll meanwhile)", error)
                self._stopping.wait(LISTEN_AGAIN_SECONDS)

    def _listen_once(self) -> None:
        with self._lock:
            waiting = {key: consumer for key, consumer in self._consumers.items() if consumer.has_room}
        if not waiting:
            self._stopping.wait(LISTEN_AGAIN_SECONDS)
            return
        popped = cast("tuple[bytes, bytes] | None", self._broker.client.blpop(list(waiting), BLOCK_SECONDS))
        if popped is not None:
            waiting[popped[0].decode()].woken.set()
