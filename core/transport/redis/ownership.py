"""Each Redis database carries the messages of a single ledger. A key in the database names that ledger.

Queues have the same names in every service. Workers of two ledgers on one Redis would fetch and drop one another's
messages, and each run would wait until it is sent again.
"""

import redis

#: The key that holds the identity of the ledger. It never expires.
KEY = "rota:ledger"


def owner(client: redis.Redis) -> str | None:
    """Return the ledger whose messages this Redis carries, or None if no worker has used it yet.

    Raises redis.RedisError.
    """
    found = client.get(KEY)
    return found.decode(errors="replace") if isinstance(found, bytes) else None


def claim(client: redis.Redis, ledger: str) -> str:
    """Assign this Redis to ``ledger``, unless it is assigned already. Return the ledger to which it is assigned.

    Raises redis.RedisError.
    """
    client.setnx(KEY, ledger)
    return owner(client) or ledger
