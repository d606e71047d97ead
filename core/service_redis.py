"""Gives plugins a client of the service's Redis."""

import os
from functools import cache
from typing import TYPE_CHECKING

from core import settings
from core.errors import SettingsError

if TYPE_CHECKING:  # the import takes 0.1 s, and `rota jobs` does not need it
    import redis

TIMEOUT_SECONDS = 10


def service_redis(url: str | None = None) -> "redis.Redis":
    """Return this process's client of the service's Redis, or of the Redis at ``url``. It connects on first use.

    Responses are bytes. A command times out after 10 seconds. Start keys with the plugin's name: Rota keeps its
    messages in the same Redis, under ``dramatiq:``, and that Redis must not evict keys.

    Raises SettingsError if REDIS_URL is not set or is not the URL of a Redis.
    """
    return _connected(url or settings.redis_url(), os.getpid())


@cache
def _connected(url: str, _pid: int) -> "redis.Redis":
    import redis

    try:
        settings.check_redis_url(url)
    except ValueError as error:
        raise SettingsError(f"the URL of Redis {error}") from None
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)
