"""The only module that reads the machine's time; all other code is passed a ``Clock``."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

#: Returns the current time, aware and in UTC.
Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """This host's current time; the ledger uses the database's clock instead."""
    return datetime.fromtimestamp(time.time(), UTC)
