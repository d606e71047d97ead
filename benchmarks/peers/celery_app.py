"""Celery on Redis with late acknowledgements, so that a worker that dies loses no messages."""

import os
from contextlib import nullcontext

from celery import Celery

from benchmarks import meter

app = Celery("peers", broker=os.environ["REDIS_URL"])
app.conf.update(task_acks_late=True, task_ignore_result=True, broker_connection_retry_on_startup=True)


@app.task(name="tick")
def tick(sent_at: float = 0.0) -> None:
    """A no-op that leaves its time."""
    meter.tick(sent_at)


producing = nullcontext


def send(sent_at: float) -> None:
    """Queue one."""
    tick.delay(sent_at)
