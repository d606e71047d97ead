"""Waking consumers whose queue was empty, by tokens that producers leave beside their messages.

One connection per process waits for the tokens of all its queues. Every second a look finds messages that came without
a token, as Dramatiq's own producers leave them: by the same thread, unless another, which watches Redis anyway, looks
around. However many queues there are, an idle process asks Redis that and no more.
"""

import threading
import time
from typing import Protocol

import redis

from core.transport.redis.error_log import ErrorLog
from core.transport.redis.queues import Queues

#: How long one wait for tokens is, below the client's socket time-out, in seconds; and where this thread has nothing
#: else to do, nor consumers come that are to be waited for as well.
BLOCK_SECONDS = 1
LONG_BLOCK_SECONDS = 4
#: How often to look for messages that came without a token, in seconds.
LOOK_SECONDS = 1.0
#: A look that another thread began less than this ago spares this one's, in seconds: the other looks every second, and
#: waits for an answer for as long.
OTHERS_LOOK_SECONDS = 3.0
#: After a lost connection, and while no consumer has room, in seconds.
LISTEN_AGAIN_SECONDS = 0.5


class Wakeable(Protocol):
    """A consumer, as far as waking it goes."""

    @property
    def queue_name(self) -> str:
        """Its queue."""

    @property
    def has_room(self) -> bool:
        """Whether it may fetch more."""

    def wake(self) -> None:
        """Have it fetch."""


class Wakeups:
    """One thread that waits for tokens on behalf of all consumers of this process."""

    def __init__(self, queues: Queues, error_log: ErrorLog) -> None:
        self._queues = queues
        self._error_log = error_log
        self._looked_at = float("-inf")
        self._others_looked_at = float("-inf")
        self._known: set[str] = set()
        #: Set when a consumer that had no room is told that there is some.
        self._room_came = threading.Event()
        self._consumers: dict[str, Wakeable] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def add(self, consumer: Wakeable) -> None:
        """Wake ``consumer`` from now on."""
        with self._lock:
            self._consumers[consumer.queue_name] = consumer
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rota-wakeups", daemon=True)
                self._thread.start()

    def remove(self, consumer: Wakeable) -> None:
        """Wake ``consumer`` no more."""
        with self._lock:
            if self._consumers.get(consumer.queue_name) is consumer:
                del self._consumers[consumer.queue_name]

    def wake_all(self) -> None:
        """Have every consumer look around."""
        for consumer in self._present().values():
            consumer.wake()

    def there_is_room(self) -> None:
        """Wait for tokens of all consumers again: one that had no room has some now."""
        self._room_came.set()

    def stop(self) -> None:
        """End the thread; it is a daemon, so nobody need wait for it."""
        self._stopping.set()

    def look_around(self, client: redis.Redis) -> None:
        """Say that this process is alive, and wake consumers on whose queues messages lie; while another thread calls
        this every second, this one need not. Raises redis.RedisError.
        """
        self._others_looked_at = time.monotonic()
        self._look(client)

    @property
    def _do_others_look(self) -> bool:
        return time.monotonic() - self._others_looked_at < OTHERS_LOOK_SECONDS

    def _present(self) -> dict[str, Wakeable]:
        with self._lock:
            return dict(self._consumers)

    def _look(self, client: redis.Redis) -> None:
        consumers = self._present()
        for name in self._queues.look(list(consumers), client):
            consumers[name].wake()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen_once()
                self._error_log.succeeded()
            # AttributeError: redis-py's, when this connection is closed under the read, as at the end of a process.
            except (redis.RedisError, OSError, ValueError, AttributeError) as error:
                if not self._stopping.wait(LISTEN_AGAIN_SECONDS):
                    self._error_log.failed(error)

    def _listen_once(self) -> None:
        consumers, others_look = self._present(), self._do_others_look
        if not others_look and time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._look(self._queues.client)
        self._room_came.clear()
        waiting = [name for name, each in consumers.items() if each.has_room]
        if not waiting:
            self._room_came.wait(LISTEN_AGAIN_SECONDS)
            return
        is_settled, self._known = self._known == consumers.keys(), set(consumers)
        block = LONG_BLOCK_SECONDS if others_look and is_settled else BLOCK_SECONDS
        name = self._queues.wait_for_token(waiting, block)
        if name is not None:
            self._wake(consumers[name])

    def _wake(self, consumer: Wakeable) -> None:
        if consumer.has_room:
            consumer.wake()
        else:  # it had when we began to wait: the token is for another process
            self._queues.wake(consumer.queue_name, 1)
