"""Which of a worker's threads are at work."""

import threading
from typing import Any

from dramatiq.broker import Broker, MessageProxy
from dramatiq.middleware import Middleware
from dramatiq.worker import Worker


class Occupation(Middleware):
    """Keeps the threads that are at work; adding to a set and taking from it need no lock."""

    def __init__(self) -> None:
        self._busy: set[int] = set()
        self._worker: Worker | None = None

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """It is this worker's threads that count."""
        self._worker = worker

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """This thread is at work."""
        self._busy.add(threading.get_ident())

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """This thread is free."""
        self._busy.discard(threading.get_ident())

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """This thread is free."""
        self._busy.discard(threading.get_ident())

    @property
    def free(self) -> int:
        """How many threads neither work nor are about to."""
        if self._worker is None:
            return 0
        return max(self._worker.worker_threads - len(self._busy) - self._worker.work_queue.qsize(), 0)

    @property
    def is_over(self) -> bool:
        """Whether nothing is at work or waits for a thread."""
        return not self._busy and (self._worker is None or self._worker.work_queue.empty())
