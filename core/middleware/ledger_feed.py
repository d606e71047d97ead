"""Has runs come to this worker's threads straight from the ledger, when they do not come by a broker."""

from typing import Any

from dramatiq.broker import Broker, MessageProxy
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core.ledger.carrier import OutgoingRun
from core.middleware.occupation import Occupation
from core.transport.delivery import Delivery
from core.transport.messages import run_message
from core.transport.work_queue import WorkQueue
from core.worker.ledger_feed import LedgerFeed


class LedgerFeeding(Middleware):
    """Starts the feed with the worker, and tells it of every thread that becomes free; comes after ``Occupation``."""

    def __init__(self, feed: LedgerFeed, occupation: Occupation) -> None:
        self._feed = feed
        self._occupation = occupation

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """There is a consumer for every queue now."""
        queues: Any = worker.consumer_whitelist or broker.get_declared_queues()
        self._feed.feed(WorkerThreads(worker, self._occupation), sorted(queues))

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """A thread has become free."""
        self._feed.thread_is_free()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Take nothing more; what was taken and not begun is taken by others."""
        self._feed.stop()


class WorkerThreads:
    """The threads of a Dramatiq worker, which are given runs as if a consumer had fetched them."""

    def __init__(self, worker: Worker, occupation: Occupation) -> None:
        self._worker = worker
        self._occupation = occupation

    @property
    def free(self) -> int:
        """How many neither work nor are about to; none before there is a consumer to be told when they have ended."""
        is_ready = all(thread.consumer is not None for thread in self._worker.consumers.values())
        return self._occupation.free if is_ready else 0

    @property
    def are_draining(self) -> bool:
        """Whether they are to take on nothing more."""
        broker: Any = self._worker.broker
        return bool(broker.is_draining)

    def work_on(self, run: OutgoingRun) -> None:
        """Put the run's message before the threads."""
        thread: Any = self._worker.consumers[run.queue]
        queue: Any = self._worker.work_queue
        if isinstance(queue, WorkQueue):
            queue.expect(run.queue)
            queue.put(Delivery(run_message(run), thread.consumer))
        else:
            thread.handle_message(MessageProxy(run_message(run)))
