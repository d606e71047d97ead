"""Whether this process may fetch messages, and how long its consumers rest if not."""

from collections.abc import Callable, Collection

from dramatiq.common import q_name

from core.transport.redis.unknown_actors import UnknownActors
from core.transport.work_queue import WorkQueue

#: How often a consumer looks whether it is to stop, once its worker is stopping, in seconds.
LOOK_AGAIN_SECONDS = 0.1
#: How long a consumer of a worker waits that has nothing to do and is not woken, in seconds. Then it only looks whether
#: it is paused: for whatever there is to fetch it is woken, by a token or by the look around every second.
IDLE_SECONDS = 10.0


def always() -> bool:
    """Without a heartbeat, a process may always claim."""
    return True


class Intake:
    """Decides for all consumers of this process."""

    def __init__(
        self,
        unknown_actors: UnknownActors,
        *,
        ledger_queues: Collection[str] = (),
        may_claim: Callable[[], bool] = always,
    ) -> None:
        """``ledger_queues``: the queues of jobs whose runs are in the ledger; ``may_claim``: whether this process may
        claim such runs just now.
        """
        self._unknown_actors = unknown_actors
        self._ledger_queues = frozenset(ledger_queues)
        self._may_claim = may_claim
        self._work_queue: WorkQueue | None = None
        self._is_draining = False

    @property
    def work_queue(self) -> WorkQueue | None:
        """What the worker's threads have in hand, once there is a worker."""
        return self._work_queue

    @property
    def is_draining(self) -> bool:
        """Whether the worker stops: consumers fetch no more, and requeue what they hold."""
        return self._is_draining

    def open(self, work_queue: WorkQueue) -> None:
        """Fetch for the threads of ``work_queue``."""
        self._work_queue, self._is_draining = work_queue, False

    def drain(self) -> None:
        """Fetch no more."""
        self._is_draining = True

    @property
    def has_room(self) -> bool:
        """Whether this process may fetch more."""
        is_open = not self._is_draining and self._unknown_actors.has_room
        return is_open and (self._work_queue is None or self._work_queue.has_room)

    def may_fetch(self, queue_name: str) -> bool:
        """Whether to fetch from this queue. Runs that this process cannot claim are left for processes that can."""
        return self.has_room and (self._may_claim() or q_name(queue_name) not in self._ledger_queues)

    def longest_rest(self, timeout_ms: int) -> float:
        """How long a consumer may wait before it looks whether it is to stop, in seconds."""
        if self._is_draining:
            return LOOK_AGAIN_SECONDS
        return timeout_ms / 1000 if self._work_queue is None else IDLE_SECONDS
