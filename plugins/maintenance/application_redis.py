"""The Redis that has the application's sessions and cache, and a search of its keys in small steps."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from core import RotaError, service_redis
from plugins.maintenance.errors import NoRedis
from plugins.maintenance.settings import MaintenanceSettings

if TYPE_CHECKING:  # the import takes 0.1 s, and `rota jobs` does not need it
    import redis

Client: TypeAlias = "redis.Redis"

#: The number of keys in one step of SCAN, which takes Redis well under a millisecond.
STEP = 500


def client() -> Client:
    """Return this process's connection to the application's Redis. Raises NoRedis if no setting names one."""
    configured = MaintenanceSettings.current().redis_url
    if configured is not None:
        return service_redis(configured.get_secret_value())
    try:
        return service_redis()
    except RotaError as error:
        raise NoRedis from error


def scan(client: Client, pattern: bytes) -> Iterator[list[bytes]]:
    """Yield all matching keys, one step of SCAN at a time. SCAN may return a key twice."""
    cursor = 0
    while True:
        cursor, keys = client.scan(cursor, match=pattern, count=STEP)
        if keys:
            yield [as_bytes(key) for key in keys]
        if not cursor:
            return


def as_bytes(value: str | bytes) -> bytes:
    """Return a value from Redis as bytes, whether or not the client has ``decode_responses``."""
    return value.encode() if isinstance(value, str) else value
