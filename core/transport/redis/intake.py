"""Decides whether this process may fetch messages, and how long its consumers wait if it may not."""

from collections.abc import Callable, Collection

from dramatiq.common import q_name

from core.transport.redis.unknown_actors import UnknownActors
from core.transport.work_queue import WorkQueue

#: While its worker is stopping, a consumer checks this often whether it must stop, in seconds.
LOOK_AGAIN_SECONDS = 0.1
#: The longest wait of a worker's consumer without a wake-up, in seconds. After the wait, the consumer only checks
#: whether it is paused, since a token or the search every second wakes it for every message.
IDLE_SECONDS = 10.0


def always() -> bool:
    """Answer that this process may claim. This is the default for a process without a heartbeat."""
    return True


class Intake:
    """Decides for all consumers of this process whether they may fetch."""

    def __init__(
        self,
        unknown_actors: UnknownActors,
        *,
        ledger_queues: Collection[str] = (),
        may_claim: Callable[[], bool] = always,
    ) -> None:
        """``ledger_queues`` are the queues of jobs whose runs are in the ledger.

        ``may_claim`` returns whether this process may claim such runs now.
        """
        self._unknown_actors = unknown_actors
        self._ledger_queues = frozenset(ledger_queues)
        self._may_claim = may_claim
        self._work_queue: WorkQueue | None = None
        self._is_draining = False

    @property
    def work_queue(self) -> WorkQueue | None:
        """The worker's work queue, or None before there is a worker."""
        return self._work_queue

    @property
    def is_draining(self) -> bool:
        """Whether the worker is stopping. If it is, consumers do not fetch, and requeue their messages."""
        return self._is_draining

    def open(self, work_queue: WorkQueue) -> None:
        """Fetch for the threads of ``work_queue`` from now on."""
        self._work_queue, self._is_draining = work_queue, False

    def drain(self) -> None:
        """Stop fetching."""
        self._is_draining = True

    def has_room(self, queue_name: str) -> bool:
        """Return whether this process has room for more messages of the queue."""
        is_open = not self._is_draining and self._unknown_actors.has_room
        return is_open and (self._work_queue is None or self._work_queue.has_room(queue_name))

    def may_fetch(self, queue_name: str) -> bool:
        """Return whether to fetch from this queue.

        Runs that this process cannot claim are left for processes that can.
        """
        name = q_name(queue_name)
        return self.has_room(name) and (self._may_claim() or name not in self._ledger_queues)

    def longest_rest(self, timeout_ms: int) -> float:
        """Return how long a consumer may wait before it checks whether it must stop, in seconds."""
        if self._is_draining:
            return LOOK_AGAIN_SECONDS
        return timeout_ms / 1000 if self._work_queue is None else IDLE_SECONDS
