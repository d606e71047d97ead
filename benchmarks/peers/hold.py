"""The task of the other task queues in the recovery benchmark. At its first call it keeps its worker busy; at the
second it returns.
"""

import os
import time

import redis

#: Longer than anybody waits.
HOLD_SECONDS = 3600


def hold(number: int) -> None:
    """Tell that it has begun; the first time, never end."""
    client = redis.Redis.from_url(os.environ["REDIS_URL"])
    attempt = client.incr(f"recovery:attempts:{number}")
    client.rpush("recovery:started", f"{number} {os.getpid()}")
    if attempt == 1:
        time.sleep(HOLD_SECONDS)
