"""A connection to Redis that fails within seconds."""

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

REDIS_AWAY = (redis.ConnectionError, redis.TimeoutError)

CONNECT_TIMEOUT_SECONDS = 2.0
#: redis-py 8 gives up on any read after 5 s by default; a blocking pop must be shorter.
SOCKET_TIMEOUT_SECONDS = 5.0


#: For who asks whether Redis is there at all.
PROBE_TIMEOUT_SECONDS = 1.0


def connect(url: str) -> redis.Redis:
    """A client that fails within seconds, not after a series of retries; nothing is opened yet."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1),
    )


def probe(url: str) -> redis.Redis:
    """A client that fails within a second, at the first attempt."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=PROBE_TIMEOUT_SECONDS,
        socket_timeout=PROBE_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
