"""Plain Dramatiq, for comparison: ``dramatiq tests.support.plain`` on a fleet's Redis, in a namespace of its own."""

import os

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

NAMESPACE = "plain"
#: Each start is pushed here.
STARTED = "plain:started"
#: What waits goes on once something lies here.
GO_ON = "plain:go-on"

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:1")

broker = RedisBroker(url=URL, namespace=NAMESPACE)
dramatiq.set_broker(broker)
client = redis.Redis.from_url(URL, socket_timeout=None)


@dramatiq.actor
def wait(number: int) -> None:
    """Tell the test, and wait until it says so."""
    client.rpush(STARTED, number)
    client.blpop([GO_ON], timeout=60)
