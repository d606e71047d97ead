"""Gives this worker's threads runs directly from the ledger while no broker delivers runs."""

from collections.abc import Iterable, Sequence
from typing import Any

from dramatiq.broker import Broker
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core.ledger.carrier import OutgoingRun
from core.transport.delivery import Delivery
from core.transport.messages import run_message
from core.transport.work_queue import Opening, WorkQueue
from core.worker.ledger_feed import LedgerFeed


class LedgerFeeding(Middleware):
    """Starts the feed with the worker, and ends it with the worker."""

    def __init__(self, feed: LedgerFeed) -> None:
        self._feed = feed

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Start the feed, since every queue has a consumer now."""
        queues: Any = worker.consumer_whitelist or broker.get_declared_queues()
        work_queue: Any = worker.work_queue
        self._feed.feed(WorkerThreads(worker, work_queue), sorted(queues))
        work_queue.when_free(self._feed.thread_is_free)

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Stop the feed. Other workers take the runs that have not started."""
        self._feed.stop()


class WorkerThreads:
    """The threads of a Dramatiq worker, which are given runs as if a consumer had fetched them."""

    def __init__(self, worker: Worker, work_queue: WorkQueue) -> None:
        self._worker = worker
        self._work_queue = work_queue

    def openings(self, queues: Sequence[str]) -> Iterable[Opening]:
        """Return how many runs could start, and from which queues. There are none before each queue has a consumer."""
        is_ready = all(thread.consumer is not None for thread in self._worker.consumers.values())
        return self._work_queue.openings(queues) if is_ready else ()

    @property
    def are_draining(self) -> bool:
        """Whether the threads must not take more runs."""
        broker: Any = self._worker.broker
        return bool(broker.is_draining)

    def work_on(self, run: OutgoingRun) -> None:
        """Put the run's message on the threads' work queue."""
        consumer: Any = self._worker.consumers[run.queue].consumer
        self._work_queue.expect(run.queue)
        self._work_queue.put(Delivery(run_message(run), consumer))
