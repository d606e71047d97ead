"""The only place in the tests that sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: How long to wait for an outcome if its promptness is not the subject of the test: enough for a busy machine. A test
#: of promptness measures the time, and compares it with the promise.
PATIENCE_SECONDS = 60.0


def eventually(condition: Callable[[], T], *, within: float = PATIENCE_SECONDS, every: float = 0.05) -> T:
    """The first true value of ``condition``, asked again and again for ``within`` seconds; else an AssertionError."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not true within {within} s; the last value was {value!r}"
        time.sleep(every)


def elapse(seconds: float) -> None:
    """Let time pass: for how long an outage lasts, or a measurement goes on. Not for waiting until something is so."""
    time.sleep(seconds)
