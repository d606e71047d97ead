"""Reads the machine's time. No other module does so: all other code gets a ``Clock`` as an argument."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

#: Returns the current time, aware and in UTC.
Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """Return this host's current time. The ledger uses the database's clock instead."""
    return datetime.fromtimestamp(time.time(), UTC)
