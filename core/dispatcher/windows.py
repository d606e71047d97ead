"""Windows limit how many messages of a queue wait in Redis. Otherwise a run would wait behind all earlier messages,
even if all of these have one other key.

A queue's window has as many messages as its workers fetch in a second. Runs that do not fit into the window wait in the
ledger, where jobs and keys take turns. At first, a window has the largest possible size. A window becomes smaller only
while messages wait, since only then do the workers fetch as fast as they can. If many more messages wait than the
window has room for, some of them may be taken back (``core/dispatcher/recall.py``). If a queue becomes empty, its
window was too small, so the window grows. A window is filled again when half of it is free, so that many runs are taken
at a time. While runs of a queue wait in the ledger, only the dispatcher sends messages to the queue. Runs that other
processes send would overtake the waiting runs.

Messages with a priority have a window of their own, of a fixed size.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from core.ledger.carrier import MOST_URGENT, MOST_WAITING, Flow

#: The smallest size of a window, in messages.
LEAST = 16
#: The time in which a queue's workers should fetch the messages of its window, in seconds.
SPAN_SECONDS = 1.0
#: The time in which a window follows a change of the workers' rate, in seconds.
SETTLE_SECONDS = 1.0
#: The shortest time over which fetched messages are counted, in seconds.
SAMPLE_SECONDS = 0.1
#: The factor by which the window of an empty queue grows.
GROWTH = 4
#: A queue is too long if it has more than this many times the messages of its window.
TOO_LONG = 2
#: How often the dispatcher repeats to other processes that a queue has no room, in seconds.
TELL_FULL_SECONDS = 0.5
#: How often the dispatcher repeats the size of a queue's window to other processes, in seconds.
TELL_SECONDS = 30.0


class Waiting(Protocol):
    """The operations of a carrier that windows need."""

    def flows(self, queues: Sequence[str]) -> list[Flow]:
        """Return the flow of each of ``queues``."""

    def urgent_waiting(self, queue: str, priority: int) -> int:
        """Return the number of waiting messages with at least this priority."""

    def tell_window(self, queue: str, most: int) -> None:
        """Tell other processes how many messages may wait on ``queue``."""


@dataclass(slots=True)
class Window:
    """The window of one queue, and the last observation of the queue."""

    most: float = MOST_WAITING
    #: The last observation of the queue, and its time by the monotonic clock.
    last: Flow | None = None
    looked_at: float = float("-inf")

    #: The number of messages that other processes were last told, and the time by the monotonic clock.
    told: int | None = None
    told_at: float = float("-inf")

    def look(self, flow: Flow, now: float) -> None:
        """Adapt the window to the rate at which messages were fetched since the last observation. Do nothing if this
        was just now.
        """
        seconds = now - self.looked_at
        if seconds < SAMPLE_SECONDS:
            return
        if self.last is not None and flow.fetched >= self.last.fetched:
            rate = (flow.fetched - self.last.fetched) / seconds
            self.most = min(max(self._adapted(self.last, flow, rate, seconds), LEAST), MOST_WAITING)
        self.last, self.looked_at = flow, now

    def _adapted(self, last: Flow, flow: Flow, rate: float, seconds: float) -> float:
        wanted = rate * SPAN_SECONDS
        if not flow.waiting:
            return max(self.most, wanted) * GROWTH if wanted else self.most
        if not last.waiting:
            return self.most
        return self.most + (wanted - self.most) * min(seconds / SETTLE_SECONDS, 1)

    def excess(self, waiting: int) -> int:
        """Return how many of the ``waiting`` messages are too many; 0 if the queue is not much longer than the
        window.
        """
        return waiting - int(self.most) if waiting > TOO_LONG * self.most else 0


class Windows:
    """The windows of all queues, as the leading dispatcher knows them."""

    def __init__(self, first: int = MOST_WAITING) -> None:
        """``first`` is the initial size of each queue's window."""
        self._windows: dict[str, Window] = defaultdict(lambda: Window(first))
        #: Whether a queue had no room for a due run since ``begin``.
        self.was_full = False

    def begin(self) -> None:
        """Forget whether a queue had no room."""
        self.was_full = False

    def excess(self, carrier: Waiting, queues: Sequence[str]) -> dict[str, int]:
        """Return each of ``queues`` that is too long, with the number of excess messages. Raises redis.RedisError."""
        now = time.monotonic()
        found = {}
        for queue, flow in zip(queues, carrier.flows(queues), strict=True):
            window = self._windows[queue]
            window.look(flow, now)
            if excess := window.excess(flow.waiting):
                found[queue] = excess
        return found

    def room(self, carrier: Waiting, queue: str) -> int:
        """Return how many messages without a priority to send to ``queue`` now. Raises redis.RedisError."""
        window, (flow,), now = self._windows[queue], carrier.flows([queue]), time.monotonic()
        window.look(flow, now)
        room = int(window.most) - flow.waiting if flow.waiting <= window.most / 2 else 0
        if not room:
            self.was_full = True
            self._tell(carrier, queue, window, 0, now)
        return room

    def sent(self, carrier: Waiting, queue: str, *, has_more: bool) -> None:
        """After some runs of ``queue`` were sent, tell other processes whether more runs are due.

        Raises redis.RedisError.
        """
        window = self._windows[queue]
        if has_more or window.told is not None:
            self._tell(carrier, queue, window, 0 if has_more else int(window.most), time.monotonic())

    def urgent_room(self, carrier: Waiting, queue: str, priority: int) -> int:
        """Return how many messages of ``priority`` to send to ``queue`` now. Raises redis.RedisError."""
        room = max(MOST_URGENT - carrier.urgent_waiting(queue, priority), 0)
        self.was_full |= room == 0
        return room

    def _tell(self, carrier: Waiting, queue: str, window: Window, most: int, now: float) -> None:
        age = now - window.told_at
        if most != window.told or age >= (TELL_SECONDS if most else TELL_FULL_SECONDS):
            carrier.tell_window(queue, most)
            window.told, window.told_at = most, now
