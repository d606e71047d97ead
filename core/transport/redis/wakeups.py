"""Wakes consumers whose queue was empty, by tokens that producers push with their messages.

One connection per process waits for the tokens of all its queues. Dramatiq's own producers send messages without
tokens. A search every second finds such messages. The thread that waits for tokens does the search, unless the thread
that checks Redis does it. An idle process sends Redis no other commands, however many queues it has.
"""

import threading
import time
from typing import Protocol

import redis

from core.transport.redis.error_log import ErrorLog
from core.transport.redis.queues import Queues

#: The length of one wait for tokens, in seconds. It must be below the client's socket time-out. The thread waits for
#: ``LONG_BLOCK_SECONDS`` if another thread does the search, and if no consumer was added since the last wait.
BLOCK_SECONDS = 1
LONG_BLOCK_SECONDS = 4
#: How often to search for messages without a token, in seconds.
LOOK_SECONDS = 1.0
#: This thread does not search if another thread began a search less than this many seconds ago. That other thread
#: searches every second, and waits up to a second for the answer.
OTHERS_LOOK_SECONDS = 3.0
#: The wait after a lost connection, and while no consumer has room, in seconds.
LISTEN_AGAIN_SECONDS = 0.5


class Wakeable(Protocol):
    """The methods of a consumer that are needed to wake it."""

    @property
    def queue_name(self) -> str:
        """The name of the consumer's queue."""

    @property
    def has_room(self) -> bool:
        """Whether the consumer may fetch more messages."""

    def wake(self) -> None:
        """Make the consumer fetch messages."""


class Wakeups:
    """The thread that waits for tokens for all consumers of this process."""

    def __init__(self, queues: Queues, error_log: ErrorLog) -> None:
        self._queues = queues
        self._error_log = error_log
        self._looked_at = float("-inf")
        self._others_looked_at = float("-inf")
        self._known: set[str] = set()
        #: Set when a consumer that had no room has room again.
        self._room_came = threading.Event()
        self._consumers: dict[str, Wakeable] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def add(self, consumer: Wakeable) -> None:
        """Begin to wake ``consumer``."""
        with self._lock:
            self._consumers[consumer.queue_name] = consumer
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rota-wakeups", daemon=True)
                self._thread.start()

    def remove(self, consumer: Wakeable) -> None:
        """Stop waking ``consumer``."""
        with self._lock:
            if self._consumers.get(consumer.queue_name) is consumer:
                del self._consumers[consumer.queue_name]

    def wake_all(self) -> None:
        """Wake every consumer."""
        for consumer in self._present().values():
            consumer.wake()

    def there_is_room(self) -> None:
        """Wait for tokens of all consumers again, since a consumer that had no room has room now."""
        self._room_came.set()

    def stop(self) -> None:
        """End the thread. It is a daemon, so the caller need not wait for it."""
        self._stopping.set()

    def look_around(self, client: redis.Redis) -> None:
        """Send this process's heartbeat, and wake consumers whose queues have messages.

        While another thread calls this method every second, this thread does not search. Raises redis.RedisError.
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
            # AttributeError: redis-py raises it when the connection is closed during a read, as at the end of a
            # process.
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
        is_ours = self._present().get(consumer.queue_name) is consumer and not self._stopping.is_set()
        if is_ours and consumer.has_room:
            consumer.wake()
        else:  # the consumer can no longer fetch, so another process gets the token
            self._queues.wake(consumer.queue_name, 1)
