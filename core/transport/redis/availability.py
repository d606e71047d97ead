"""Whether Redis is of use, asked every second: it may be down, cut off, full, or a replica that takes no writes.

The question is one that a worker has anyway; it is a script that writes, so that its answer covers all of that.

Redis is given up within three seconds, and trusted again only once it has answered for longer than Dramatiq's consumers
take to come back, so that runs are never left to nobody.
"""

import threading
import time
from collections.abc import Callable

import redis
from dramatiq.worker import CONSUMER_RESTART_DELAY_SECS

from core.observability import metrics
from core.observability.events import RedisAway, RedisBack, emit

ASK_EVERY_SECONDS = 1.0
#: A single slow answer is not an outage; an error is.
MOST_SILENCES = 2
TRUSTED_AFTER_SECONDS = CONSUMER_RESTART_DELAY_SECS + 1


class RedisWatch(threading.Thread):
    """One thread that asks."""

    def __init__(self, client: redis.Redis, ask: Callable[[redis.Redis], object]) -> None:
        """``client`` must fail within about a second, and is this thread's own; ``ask`` asks over it."""
        super().__init__(name="rota-redis-watch", daemon=True)
        #: Set while Redis is away.
        self.is_away = threading.Event()
        self._client = client
        self._question = ask
        self._stopping = threading.Event()
        self._silences = 0
        self._answering_since: float | None = None

    def run(self) -> None:
        """Ask until stopped."""
        metrics.travelling(by_ledger=False)
        while not self._stopping.is_set():
            self.look(self._ask(), time.monotonic())
            self._stopping.wait(ASK_EVERY_SECONDS)

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()

    def look(self, error: Exception | None, now: float) -> None:
        """Take note of an answer, or of its absence."""
        if error is not None:
            self._answering_since = None
            self._silences += 1
            if self._silences >= MOST_SILENCES or not isinstance(error, redis.TimeoutError):
                self._give_up(error)
            return
        self._silences = 0
        self._answering_since = self._answering_since or now
        if self.is_away.is_set() and now - self._answering_since >= TRUSTED_AFTER_SECONDS:
            self.is_away.clear()
            metrics.travelling(by_ledger=False)
            emit(RedisBack())

    def _ask(self) -> Exception | None:
        try:
            self._question(self._client)
        except Exception as error:  # noqa: BLE001 — a background loop outlives its errors, and Redis gave no answer
            self._client.connection_pool.disconnect()  # the name may lead to another server by now
            return error
        return None

    def _give_up(self, error: Exception) -> None:
        if not self.is_away.is_set():
            self.is_away.set()
            metrics.travelling(by_ledger=True)
            emit(RedisAway(str(error)))
