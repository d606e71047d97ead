"""One Redis database carries the messages of one ledger. A key in it names the ledger.

Queues have the same names in every service. Workers of two ledgers on one Redis would fetch and drop one another's
messages, and each run would wait until it is sent again.
"""

import redis

#: Holds the identity of the ledger, for ever.
KEY = "rota:ledger"


def owner(client: redis.Redis) -> str | None:
    """The ledger whose messages this Redis carries; None if no worker has used it yet. Raises redis.RedisError."""
    found = client.get(KEY)
    return found.decode(errors="replace") if isinstance(found, bytes) else None


def claim(client: redis.Redis, ledger: str) -> str:
    """Assign this Redis to ``ledger`` unless it has a ledger; return its ledger. Raises redis.RedisError."""
    client.setnx(KEY, ledger)
    return owner(client) or ledger
