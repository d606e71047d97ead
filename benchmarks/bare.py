"""Bare Dramatiq, set up as in its documentation. The other measurements are compared with it."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks import meter

dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))


@dramatiq.actor(actor_name="bench-bare", queue_name="bench-bare")
def bare(sent_at: float = 0.0) -> None:
    """A no-op that leaves its time."""
    meter.tick(sent_at)
