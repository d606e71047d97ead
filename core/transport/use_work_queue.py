"""Gives Rota's work queue to the threads of a worker."""

import sys
from collections.abc import Mapping
from typing import Any

from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core.transport.reservations import Reservation, too_few
from core.transport.reserved_work_queue import ReservedWorkQueue
from core.transport.work_queue import WorkQueue


class UseWorkQueue(Middleware):
    """Middleware that gives Rota's work queue to a worker's threads, and wakes idle threads and consumers when the
    worker stops.

    Rota's brokers add this middleware to their own list.
    """

    def __init__(self, reserved: Mapping[str, Reservation]) -> None:
        """``reserved`` has the reserved threads by queue. Queues that the worker does not serve are ignored."""
        self._reserved = reserved

    def before_worker_boot(self, broker: Any, worker: Worker) -> None:
        """Replace the work queue before threads and consumers are created.

        Raises SystemExit if there are too few threads, since Dramatiq would only log an Exception and continue.
        """
        served = worker.consumer_whitelist or broker.get_declared_queues()
        reserved = {queue: each for queue, each in self._reserved.items() if queue in served}
        if problem := too_few(worker.worker_threads, reserved.values()):
            sys.exit(f"rota: {problem}")
        threads = worker.worker_threads
        work_queue = ReservedWorkQueue(threads, reserved) if reserved else WorkQueue(threads)
        worker.work_queue = work_queue  # type: ignore[assignment]
        broker.begin_work(work_queue)

    def before_worker_shutdown(self, broker: Any, worker: Worker) -> None:
        """Stop taking messages, and wake idle threads so that they end at once."""
        broker.drain()
        worker.work_queue.close()  # type: ignore[attr-defined]
