"""Limits how many changes each caller makes in a minute."""

import time
from collections.abc import Callable

from core.web.buckets import Buckets
from core.web.refusals import TooManyWrites

PER_MINUTE = 60


class Writes:
    """Has a bucket of changes for each caller."""

    def __init__(self, per_minute: int = PER_MINUTE, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._left = Buckets(per_minute, monotonic)

    def take(self, caller: str) -> None:
        """Count one change of ``caller``. Raises TooManyWrites."""
        if not self._left.take(caller):
            raise TooManyWrites(f"at most {self._left.per_minute} changes a minute are allowed")
