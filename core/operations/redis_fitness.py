"""Checks that Redis can carry the messages of this ledger. Each function makes one check."""

from collections.abc import Iterator
from contextlib import suppress

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.operations.checks import Check, check
from core.settings import Settings
from core.transport.redis import ownership

TIMEOUT_SECONDS = 3
#: The key that is written to test whether Redis accepts writes. It expires by itself.
PROBE_KEY = "rota:check"
ANOTHER_REDIS = (
    "give each service a Redis of its own, or a database of its own (redis://…/1). If this ledger replaces the other "
    "ledger, for example after a restore or a move, stop all workers and schedulers, and run "
    f"`redis-cli DEL {ownership.KEY}`"
)


def reachable(configured: Settings, advice: str) -> Check:
    """Check that Redis can be reached and accepts writes, if Rota uses it."""
    if configured.mode == "local" or configured.redis_url is None:
        return check("Redis", "info", "not used: SCHEDULER_MODE=local")
    client = connected(configured.redis_url.get_secret_value())
    try:
        client.set(PROBE_KEY, "1", ex=10)
        return check("Redis", "ok", f"version {redis_version(client)}, accepts writes")
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
    """Return the advice for an error reply of Redis."""
    if "maxmemory" in message:
        return "Redis is full: raise maxmemory; its maxmemory-policy should be noeviction"
    if "MISCONF" in message:
        return "Redis cannot write to its disk; see its log"
    return "see the log of Redis"


def redis_version(client: redis.Redis) -> str:
    """Return the version of Redis, or "unknown" if the user may not ask for it."""
    with suppress(redis.RedisError):
        return str(client.info("server")["redis_version"])
    return "unknown"


def owned(configured: Settings, ledger: str) -> Iterator[Check]:
    """Check that Redis belongs to ``ledger``. Check nothing if Redis cannot be reached."""
    if configured.mode == "local" or configured.redis_url is None:
        return
    client = connected(configured.redis_url.get_secret_value())
    try:
        yield belongs(ownership.owner(client), ledger)
    except redis.RedisError:
        return  # the check ``reachable`` reports the reason
    finally:
        client.close()


def belongs(owner: str | None, ledger: str) -> Check:
    """Check that ``owner``, the ledger that is named in Redis, is ``ledger``."""
    name = "ledger of Redis"
    if owner is None:
        return check(name, "ok", "none yet; the first worker writes this ledger's id to Redis")
    if owner == ledger:
        return check(name, "ok", "this one")
    return check(
        name, "wrong", f"Redis carries the messages of the ledger {owner}; this ledger is {ledger}", ANOTHER_REDIS
    )


def connected(url: str) -> redis.Redis:
    """Return a client that makes one attempt, and fails within seconds."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=TIMEOUT_SECONDS,
        socket_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
