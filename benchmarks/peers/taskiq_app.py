"""Taskiq on Redis streams, with its broker that acknowledges messages."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

from taskiq_redis import RedisStreamBroker

from benchmarks import meter

broker = RedisStreamBroker(url=os.environ["REDIS_URL"])
loop = asyncio.new_event_loop()


@broker.task(task_name="tick")
async def tick(sent_at: float = 0.0) -> None:
    """A no-op that leaves its time."""
    meter.tick(sent_at)


@contextmanager
def producing() -> Iterator[None]:
    """All from one event loop."""
    loop.run_until_complete(broker.startup())
    yield
    loop.run_until_complete(broker.shutdown())


def send(sent_at: float) -> None:
    """Queue one."""
    loop.run_until_complete(tick.kiq(sent_at))
