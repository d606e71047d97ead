"""Checks every second whether Redis is usable: it may be down, cut off, full, or a read-only replica.

The check is a script that workers run anyway. The script writes, so it detects all of these states.

A failure of Redis is noticed within three seconds. Redis counts as back only after it has answered for longer than
Dramatiq's consumers need to reconnect. So each run is always taken either from the ledger or from Redis.
"""

import threading
import time
from collections.abc import Callable

import redis
from dramatiq.worker import CONSUMER_RESTART_DELAY_SECS

from core.observability import metrics
from core.observability.events import RedisAway, RedisBack, emit

ASK_EVERY_SECONDS = 1.0
#: This many time-outs in a row are an outage. Any other error is an outage at once.
MOST_SILENCES = 2
TRUSTED_AFTER_SECONDS = CONSUMER_RESTART_DELAY_SECS + 1


class RedisWatch(threading.Thread):
    """The thread that checks whether Redis is usable."""

    def __init__(self, client: redis.Redis, ask: Callable[[redis.Redis], object]) -> None:
        """Only this thread uses ``client``, which must fail within about a second. ``ask`` sends the check."""
        super().__init__(name="rota-redis-watch", daemon=True)
        #: Set while Redis is away.
        self.is_away = threading.Event()
        self._client = client
        self._question = ask
        self._stopping = threading.Event()
        self._silences = 0
        self._answering_since: float | None = None

    def run(self) -> None:
        """Check until stopped."""
        metrics.travelling(by_ledger=False)
        while not self._stopping.is_set():
            self.look(self._ask(), time.monotonic())
            self._stopping.wait(ASK_EVERY_SECONDS)

    def stop(self) -> None:
        """Stop checking."""
        self._stopping.set()

    def look(self, error: Exception | None, now: float) -> None:
        """Remember the result of a check: an error, or None if Redis answered."""
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
        except Exception as error:  # noqa: BLE001 — the loop goes on after any error, which counts as no answer
            self._client.connection_pool.disconnect()  # the host name may now belong to another server
            return error
        return None

    def _give_up(self, error: Exception) -> None:
        if not self.is_away.is_set():
            self.is_away.set()
            metrics.travelling(by_ledger=True)
            emit(RedisAway(str(error)))
