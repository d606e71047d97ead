"""Windows: how many messages of a queue may wait in Redis, so that a run with another key need not wait for them all.

A queue's window has as many messages as its workers fetch in a second. What does not fit waits in the ledger, where
jobs and keys take turns. If the dispatcher finds a queue empty to which it has sent messages, its window was too small
and grows. A window is filled when half of it is free, so that runs are taken many at a time. While runs wait in the
ledger, other processes send nothing to the queue themselves, since later runs would overtake those.

Messages with a priority have a window of their own, of a fixed size.
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

#: The window of a queue of which nothing is known.
FIRST = 1000
#: The bounds of a window.
LEAST = 16
MOST = 20_000
#: How many messages of a priority may wait, counting those of higher ones.
URGENT = 1000
#: The time in which a queue's workers should fetch what is in its window, in seconds.
SPAN_SECONDS = 1.0
#: The shortest time in which fetched messages are counted, in seconds.
SAMPLE_SECONDS = 0.1
#: The longest such time, in seconds. In a longer time other processes may have sent messages too.
LONGEST_SAMPLE_SECONDS = 2.0
#: The factor by which the window of a queue grows that was empty.
GROWTH = 4
#: How often the dispatcher tells other processes the window of a queue, or that it has no room, in seconds.
TELL_FULL_SECONDS = 0.5
TELL_SECONDS = 30.0


class Waiting(Protocol):
    """The part of a carrier that windows need."""

    def waiting(self, queue: str, priority: int = 0) -> int:
        """The number of waiting messages with this priority or a higher one; 0 counts those without a priority."""

    def tell_window(self, queue: str, most: int) -> None:
        """Tell other processes how many messages may wait on ``queue``."""


@dataclass(slots=True)
class Window:
    """The window of one queue, and what was last seen of the queue."""

    most: float = FIRST
    #: When the present sample began, by the monotonic clock, and how many messages were waiting then.
    since: float = float("-inf")
    length: int = 0
    #: How many messages were sent since then.
    sent: int = 0

    #: What other processes were told last, and when.
    told: int | None = None
    told_at: float = float("-inf")

    def look(self, length: int, now: float) -> None:
        """Adapt the window to the number of messages that wait now, if the sample is long enough."""
        seconds = now - self.since
        if seconds < SAMPLE_SECONDS:
            return
        if seconds <= LONGEST_SAMPLE_SECONDS and self.length + self.sent > 0:
            self._adapt(length, seconds)
        self.since, self.length, self.sent = now, length, 0

    def _adapt(self, length: int, seconds: float) -> None:
        fetched = max(self.length + self.sent - length, 0) * SPAN_SECONDS / seconds
        if length == 0:
            most = max(self.most, fetched) * GROWTH
        else:
            most = self.most + (fetched - self.most) * min(seconds / SPAN_SECONDS, 1)
        self.most = min(max(most, LEAST), MOST)


class Windows:
    """The windows of all queues, as the leading dispatcher knows them."""

    def __init__(self) -> None:
        self._windows: dict[str, Window] = defaultdict(Window)
        #: Whether there was no room for a due run since ``begin``.
        self.was_full = False

    def begin(self) -> None:
        """Forget whether there was no room."""
        self.was_full = False

    def room(self, carrier: Waiting, queue: str) -> int:
        """How many messages without a priority to send to ``queue`` now. Raises redis.RedisError."""
        window, length, now = self._windows[queue], carrier.waiting(queue), time.monotonic()
        window.look(length, now)
        room = int(window.most) - length if length <= window.most / 2 else 0
        if not room:
            self.was_full = True
            self._tell(carrier, queue, window, 0, now)
        return room

    def sent(self, carrier: Waiting, queue: str, count: int, *, has_more: bool) -> None:
        """Remember that ``count`` messages without a priority were sent to ``queue``, and whether more runs are due.

        Raises redis.RedisError.
        """
        window = self._windows[queue]
        window.sent += count
        if has_more or window.told is not None:
            self._tell(carrier, queue, window, 0 if has_more else int(window.most), time.monotonic())

    def urgent_room(self, carrier: Waiting, queue: str, priority: int) -> int:
        """How many messages of ``priority`` to send to ``queue`` now. Raises redis.RedisError."""
        room = max(URGENT - carrier.waiting(queue, priority), 0)
        self.was_full |= room == 0
        return room

    def _tell(self, carrier: Waiting, queue: str, window: Window, most: int, now: float) -> None:
        age = now - window.told_at
        if most != window.told or age >= (TELL_SECONDS if most else TELL_FULL_SECONDS):
            carrier.tell_window(queue, most)
            window.told, window.told_at = most, now
