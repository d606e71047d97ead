"""Reads the machine's time. All other modules get a ``Clock`` as an argument, so that tests can set the time."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

#: Returns the current time, aware and in UTC.
Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """Return this host's current time. The ledger uses the database's clock instead."""
    return datetime.fromtimestamp(time.time(), UTC)
