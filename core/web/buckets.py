"""Counts what happens in a minute: there is a bucket for each name, and the buckets fill again with time."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

#: At most this many names are remembered. The names that were used longest ago are forgotten first.
MOST_NAMES = 10_000


class Buckets:
    """Has a bucket for each name, with room for the uses of one minute."""

    def __init__(self, per_minute: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._monotonic = monotonic
        self._lock = threading.Lock()
        #: The uses that are left, and the time of this number.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> bool:
        """Take one use. Return whether there was one."""
        with self._lock:
            left, now = self._now(name)
            self._left[name] = (left - 1 if left >= 1 else left, now)
            self._left.move_to_end(name)
            if len(self._left) > MOST_NAMES:
                self._left.popitem(last=False)
        return left >= 1

    def wait(self, name: str) -> float:
        """Return the seconds until there is a use, 0 if there is one now. It is not taken."""
        with self._lock:
            left, _ = self._now(name)
        return max(0.0, (1 - left) * 60 / self.per_minute)

    def _now(self, name: str) -> tuple[float, float]:
        now = self._monotonic()
        left, then = self._left.get(name, (float(self.per_minute), now))
        return min(left + (now - then) * self.per_minute / 60, self.per_minute), now
