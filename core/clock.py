"""The only module that asks the machine for the time; everything else is handed a ``Clock``."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

#: Answers the present instant, aware and in UTC.
Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """This host's idea of now; the ledger uses the database's instead."""
    return datetime.fromtimestamp(time.time(), UTC)
