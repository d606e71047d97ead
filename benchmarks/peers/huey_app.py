"""Huey on Redis, which has no acknowledgements: a consumer that dies loses its jobs."""

import os
from contextlib import nullcontext

from huey import RedisHuey

from benchmarks import meter

huey = RedisHuey("peers", url=os.environ["REDIS_URL"], results=False)


@huey.task(name="tick")
def tick(sent_at: float = 0.0) -> None:
    """A no-op that leaves its time."""
    meter.tick(sent_at)


producing = nullcontext


def send(sent_at: float) -> None:
    """Queue one."""
    tick(sent_at)
