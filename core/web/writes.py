"""Limits how many changes each caller makes in a minute."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from core.web.refusals import TooManyWrites

PER_MINUTE = 60
#: At most this many callers are remembered. The callers whose last change is oldest are forgotten first.
MOST_CALLERS = 10_000


class Writes:
    """Has a bucket of changes for each caller. The buckets fill again with time."""

    def __init__(self, per_minute: int = PER_MINUTE, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._monotonic = monotonic
        self._lock = threading.Lock()
        #: For each caller, the number of changes that are left, and the time when this number was computed.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count one change of ``caller``. Raises TooManyWrites."""
        now = self._monotonic()
        with self._lock:
            left, then = self._left.pop(caller, (float(self._per_minute), now))
            left = min(left + (now - then) * self._per_minute / 60, self._per_minute)
            self._left[caller] = (left - 1 if left >= 1 else left, now)
            if len(self._left) > MOST_CALLERS:
                self._left.popitem(last=False)
        if left < 1:
            raise TooManyWrites(f"at most {self._per_minute} changes a minute are allowed")
