"""Polls mailboxes with Celery, a task each: ``python -m benchmarks.peers.mailbox_celery PORT COUNT`` requests COUNT."""

import os
import sys

from celery import Celery

from benchmarks import meter
from benchmarks.peers import mailbox

app = Celery("mailboxes", broker=os.environ["REDIS_URL"])
app.conf.update(
    task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True
)


@app.task(name="poll")
def poll(port: int, username: str) -> None:
    """Poll one mailbox."""
    mailbox.poll("127.0.0.1", port, username, "sesame")
    meter.tick()


if __name__ == "__main__":
    for number in range(int(sys.argv[2])):
        poll.delay(int(sys.argv[1]), f"user-{number}")
