"""A connection to Redis that fails within seconds."""

from collections.abc import Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.exceptions import NoScriptError
from redis.retry import Retry

from core import forks

REDIS_AWAY = (redis.ConnectionError, redis.TimeoutError)

CONNECT_TIMEOUT_SECONDS = 2.0
#: redis-py 8 ends any read after 5 s by default, so a blocking pop must be shorter.
SOCKET_TIMEOUT_SECONDS = 5.0


#: The time-out of a client that only checks whether Redis answers.
PROBE_TIMEOUT_SECONDS = 1.0


def connect(url: str) -> redis.Redis:
    """Return a client that connects on first use. It fails within seconds, and retries at most once."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1),
        redis_connect_func=greet,
    )


def probe(url: str) -> redis.Redis:
    """Return a client that makes one attempt, and fails within a second."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=PROBE_TIMEOUT_SECONDS,
        socket_timeout=PROBE_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        redis_connect_func=greet,
    )


def greet(connection: Any) -> None:
    """Set up a connection as redis-py does, and close it in every child of a fork.

    If a child kept the connection open, Redis would still send messages to a parent that has ended.
    """
    forks.keep_from_children(connection._sock)
    connection.on_connect()


def evaluate_once(client: redis.Redis, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
    """Run ``script`` without redis-py's retry, and return the result.

    If a fetch were retried, the messages that its first try fetched would be lost.

    Raises redis.RedisError.
    """
    try:
        return execute_once(client, "EVALSHA", script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return execute_once(client, "EVAL", script.script, len(keys), *keys, *arguments)


def execute_once(client: redis.Redis, *command: Any) -> Any:
    """Execute a command without a retry, and return the answer. Raises redis.RedisError."""
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        connection.send_command(*command)
        return connection.read_response()
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        connection.disconnect()
        raise
    finally:
        pool.release(connection)
