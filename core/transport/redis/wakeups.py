"""Waking consumers whose queue was empty, by tokens that producers leave beside their messages.

One connection per process waits for the tokens of all its queues. Once a second it is looked whether messages lie on
any of them that came without a token, as Dramatiq's own producers leave them: by the same thread, or by whoever watches
Redis every second anyway. However many queues there are, an idle process asks Redis that and no more.
"""

import threading
import time
from typing import TYPE_CHECKING, cast

import redis
from dramatiq.common import current_millis

from core.transport.redis.connection import evaluate_once

if TYPE_CHECKING:
    from core.transport.redis.broker import RotaBroker
    from core.transport.redis.consumer import Consumer

#: How long one wait for tokens is, below the client's socket time-out, in seconds; and where this thread has nothing
#: else to do, nor consumers come that are to be waited for as well.
BLOCK_SECONDS = 1
LONG_BLOCK_SECONDS = 4
#: How often to look for messages that came without a token, in seconds.
LOOK_SECONDS = 1.0
#: After a lost connection, and while no consumer has room, in seconds.
LISTEN_AGAIN_SECONDS = 0.5
#: Tokens beyond this are cut off: a woken consumer fetches a windowful.
MOST_TOKENS = 64
#: Tokens that nobody took are worthless by then: everybody has looked.
TOKENS_LAST_MS = 5_000
#: Says that this broker is alive, and which of its queues have messages: KEYS heartbeats, queues; ARGV time, broker.
LOOK = """
redis.call('zadd', KEYS[1], ARGV[1], ARGV[2])
local found = {}
for index = 2, #KEYS do
    if redis.call('exists', KEYS[index]) == 1 then found[#found + 1] = index - 2 end
end
return found
"""


class Wakeups:
    """One thread that waits for tokens on behalf of all consumers of this process."""

    def __init__(self, broker: "RotaBroker") -> None:
        self._broker = broker
        self._look = broker.client.register_script(LOOK)
        self._looked_at = float("-inf")
        #: Whether somebody else calls ``look_around`` every second.
        self.is_looked_for = False
        self._known: set[str] = set()
        #: Set when a consumer that had no room is told that there is some.
        self.room_came = threading.Event()
        self._consumers: dict[str, Consumer] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def add(self, consumer: "Consumer") -> None:
        """Wake ``consumer`` from now on."""
        with self._lock:
            self._consumers[consumer.queue_name] = consumer
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rota-wakeups", daemon=True)
                self._thread.start()

    def remove(self, consumer: "Consumer") -> None:
        """Wake ``consumer`` no more."""
        with self._lock:
            if self._consumers.get(consumer.queue_name) is consumer:
                del self._consumers[consumer.queue_name]

    def wake_all(self) -> None:
        """Have every consumer look around."""
        with self._lock:
            consumers = list(self._consumers.values())
        for consumer in consumers:
            consumer.wake()

    def stop(self) -> None:
        """End the thread; it is a daemon, so nobody need wait for it."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen_once()
                self._broker.trouble.passed()
            # AttributeError: redis-py's, when this connection is closed under the read, as at the end of a process.
            except (redis.RedisError, OSError, ValueError, AttributeError) as error:
                if not self._stopping.wait(LISTEN_AGAIN_SECONDS):
                    self._broker.trouble.met(error)

    def _listen_once(self) -> None:
        with self._lock:
            consumers = dict(self._consumers)
        if not self.is_looked_for and time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self.look_around(self._broker.client)
        self.room_came.clear()
        waiting = {self._broker.wake_key(name): each for name, each in consumers.items() if each.has_room}
        if not waiting or not self._broker.has_room:
            self.room_came.wait(LISTEN_AGAIN_SECONDS)
            return
        is_settled, self._known = self._known == consumers.keys(), set(consumers)
        block = LONG_BLOCK_SECONDS if self.is_looked_for and is_settled else BLOCK_SECONDS
        popped = cast("tuple[bytes, bytes] | None", self._broker.client.blpop(list(waiting), block))
        if popped is not None:
            self._wake(waiting[popped[0].decode()])

    def look_around(self, client: redis.Redis) -> None:
        """Say that this broker is alive, and wake consumers on whose queues messages lie. Raises redis.RedisError."""
        with self._lock:
            consumers = list(self._consumers.values())
        namespace = self._broker.namespace
        keys = [f"{namespace}:__heartbeats__", *(f"{namespace}:{consumer.queue_name}" for consumer in consumers)]
        for index in evaluate_once(client, self._look, keys, [current_millis(), self._broker.broker_id]):
            consumers[index].wake()

    def _wake(self, consumer: "Consumer") -> None:
        if consumer.has_room:
            consumer.wake()
        else:  # it had when we began to wait: the token is for another process
            self._broker.wake(consumer.queue_name, 1)
