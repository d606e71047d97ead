"""Has runs come to this worker's threads straight from the ledger, when they do not come by a broker."""

from collections.abc import Callable
from typing import Any

from dramatiq.broker import Broker, MessageProxy
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker

from core.ledger.carrier import OutgoingRun
from core.middleware.occupation import Occupation
from core.transport.messages import run_message
from core.transport.redis import Delivery, WorkQueue
from core.worker.ledger_feed import DirectTaker, Hands


class DirectRuns(Middleware):
    """Starts the taker with the worker, and tells it of every thread that becomes free; comes after ``Occupation``."""

    def __init__(self, occupation: Occupation, make_taker: Callable[[Hands, tuple[str, ...]], DirectTaker]) -> None:
        self._occupation = occupation
        self._make_taker = make_taker
        self._taker: DirectTaker | None = None

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """There is a consumer for every queue now."""
        queues: Any = worker.consumer_whitelist or broker.get_declared_queues()
        self._taker = self._make_taker(WorkerThreads(worker, self._occupation), tuple(sorted(queues)))
        self._taker.start()

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """A thread has become free."""
        if self._taker is not None:
            self._taker.wake()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Take nothing more; what was taken and not begun is taken by others."""
        if self._taker is not None:
            self._taker.stop()


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

    def work_on(self, run: OutgoingRun) -> None:
        """Put the run's message before the threads."""
        thread: Any = self._worker.consumers[run.queue]
        queue: Any = self._worker.work_queue
        if isinstance(queue, WorkQueue):
            queue.expect(run.queue)
            queue.put(Delivery(run_message(run), thread.consumer))
        else:
            thread.handle_message(MessageProxy(run_message(run)))
