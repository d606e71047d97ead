"""Bare Dramatiq for the recovery benchmark. Run as a program, it sends the given number of tasks."""

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers.hold import hold

dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))


@dramatiq.actor(actor_name="hold", queue_name="hold")
def task(number: int) -> None:
    """Hold the worker."""
    hold(number)


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        task.send(number)
