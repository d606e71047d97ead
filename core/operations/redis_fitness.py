"""Whether Redis is fit to carry messages: one function per question."""

from contextlib import suppress

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.operations.checks import Check, check
from core.settings import Settings

TIMEOUT_SECONDS = 3
#: Written and deleted to see whether Redis takes writes.
PROBE_KEY = "rota:check"


def carrier(configured: Settings, advice: str) -> Check:
    """Whether Redis is there and takes writes, unless it is not used."""
    if configured.mode == "local" or configured.redis_url is None:
        return check("Redis", "info", "not used: SCHEDULER_MODE=local")
    client = connected(configured.redis_url.get_secret_value())
    try:
        client.set(PROBE_KEY, "1", ex=10)
        return check("Redis", "ok", f"version {redis_version(client)}, takes writes")
    except redis.AuthenticationError as error:
        return check("Redis", "wrong", str(error), "put user and password into REDIS_URL: redis://user:password@host")
    except redis.ReadOnlyError as error:
        return check("Redis", "wrong", str(error), "REDIS_URL names a replica; it must name the primary")
    except redis.ResponseError as error:
        return check("Redis", "wrong", str(error), response_advice(str(error)))
    except redis.RedisError as error:
        return check("Redis", "wrong", str(error) or type(error).__name__, advice)
    finally:
        client.close()


def response_advice(message: str) -> str:
    """What to do about a refusal."""
    if "maxmemory" in message:
        return "Redis is full: raise maxmemory; its maxmemory-policy should be noeviction"
    if "MISCONF" in message:
        return "Redis cannot write to its disk; see its log"
    return "see the log of Redis"


def redis_version(client: redis.Redis) -> str:
    """Its version, if it may be asked."""
    with suppress(redis.RedisError):
        return str(client.info("server")["redis_version"])
    return "unknown"


def connected(url: str) -> redis.Redis:
    """A client that fails within seconds, at the first attempt."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=TIMEOUT_SECONDS,
        socket_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
