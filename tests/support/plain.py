"""Plain Dramatiq, for comparison: ``dramatiq tests.support.plain`` uses the Redis of a fleet in a namespace of its
own.
"""

import os

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

NAMESPACE = "plain"
#: The list of starts.
STARTED = "plain:started"
#: A waiting actor goes on when this list has an entry.
GO_ON = "plain:go-on"

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:1")

broker = RedisBroker(url=URL, namespace=NAMESPACE)
dramatiq.set_broker(broker)
client = redis.Redis.from_url(URL, socket_timeout=None)


@dramatiq.actor
def wait(number: int) -> None:
    """Tell the test, and wait until the test says so."""
    client.rpush(STARTED, number)
    client.blpop([GO_ON], timeout=60)
