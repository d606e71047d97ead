"""Celery for the recovery benchmark, without Rota's core. Run as a program, it sends the given number of tasks."""

import os
import sys

from celery import Celery

from benchmarks.peers.hold import hold

app = Celery("recovery", broker=os.environ["REDIS_URL"])


@app.task(name="hold")
def task(number: int) -> None:
    """Hold the worker."""
    hold(number)


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        app.send_task("hold", [number])
