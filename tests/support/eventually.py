"""The only place in the tests that sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: How long to wait for an outcome if the test is not about promptness: enough for a busy machine. A test of promptness
#: measures the time, and compares it with the promised time.
PATIENCE_SECONDS = 60.0


def eventually(condition: Callable[[], T], *, within: float = PATIENCE_SECONDS, every: float = 0.05) -> T:
    """Return the first true value of ``condition``, which is called again and again for ``within`` seconds. Raises
    AssertionError.
    """
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not true within {within} s; the last value was {value!r}"
        time.sleep(every)


def elapse(seconds: float) -> None:
    """Let time pass, for the length of an outage or of a measurement. Do not use this to wait for a condition."""
    time.sleep(seconds)
