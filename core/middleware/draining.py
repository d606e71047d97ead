"""A worker that is stopping takes on nothing more, and leaves to others at once what it has not begun.

Dramatiq's own consumers go on fetching until the last job has ended, and hold what they fetched all that time.
"""

import logging
from collections import defaultdict
from typing import Any

from dramatiq.broker import Broker
from dramatiq.common import iter_queue
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core.transport.local import LocalBroker
from core.transport.redis import RotaBroker

logger = logging.getLogger(__name__)


class Draining(Middleware):
    """Closes the consumers' windows and puts back what waits in this process's memory."""

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """The worker is told to stop."""
        begin(broker, worker)


def begin(broker: Any, worker: Worker) -> None:
    """Put back every message that no thread has begun with; what comes a moment later Dramatiq puts back itself."""
    broker.drain()
    if isinstance(broker, RotaBroker):  # another broker keeps its messages in this process
        put_back_waiting(worker)


def is_empty(broker: Any) -> bool:
    """Whether nothing would be lost with this process's memory."""
    return not isinstance(broker, LocalBroker) or broker.is_empty


def put_back_waiting(worker: Worker) -> None:
    """Put back what waits for a thread."""
    waiting: dict[str, list[Any]] = defaultdict(list)
    for item in iter_queue(worker.work_queue):
        waiting[item.message.queue_name].append(item.message)
    for queue_name, messages in waiting.items():
        try:
            worker.consumers[queue_name].requeue_messages(messages)
        except ConnectionClosed as error:
            logger.warning("worker.not_drained queue=%s messages=%s: %s", queue_name, len(messages), error)
