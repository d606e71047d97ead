"""Logs a failure of Redis once per process, even if many threads notice it, and counts the errors."""

import threading
import time

import redis
from redis.exceptions import ReadOnlyError

from core.observability.events import RedisRecovered, RedisTrouble, emit

#: A failure is over if no error has occurred for this many seconds, so that a connection that drops again and again is
#: one failure.
QUIET_SECONDS = 5.0
#: A failure that lasts is logged again after this many seconds.
LOG_AGAIN_SECONDS = 60.0


class ErrorLog:
    """Logs that Redis fails, and that it has recovered."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._logged_at = float("-inf")
        self._failed_at = float("-inf")
        self._times = 0
        self._is_over = True

    def failed(self, error: Exception) -> None:
        """Log the error of a command, unless the present failure has just been logged. Disconnect from a replica, since
        the primary may have moved.
        """
        if isinstance(error, ReadOnlyError):
            self._client.connection_pool.disconnect(inuse_connections=False)
        now = time.monotonic()
        with self._lock:
            self._times += 1
            self._failed_at = now
            is_news = self._is_over or now - self._logged_at >= LOG_AGAIN_SECONDS
            if is_news:
                self._logged_at, self._is_over = now, False
        if is_news:
            emit(RedisTrouble(str(error), self._times))

    def succeeded(self) -> None:
        """Remember that a command succeeded. Log the recovery if no command has failed for a while."""
        if self._is_over or time.monotonic() - self._failed_at < QUIET_SECONDS:
            return
        with self._lock:
            times, self._times = self._times, 0
            was_over, self._is_over = self._is_over, True
        if not was_over:
            emit(RedisRecovered(times))
