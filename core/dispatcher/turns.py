"""Wakes parked runs if the process of the run before them could not: it died, or was without PostgreSQL."""

from sqlalchemy import Connection

from core.ledger import turns
from core.ledger.turns import Turn

#: How many jobs and keys one pass checks.
AT_ONCE = 1000
FIRST = Turn("", "")


class TurnKeeper:
    """Checks the jobs and keys with parked runs in turn, some of them in each pass."""

    def __init__(self) -> None:
        self._reached = FIRST

    def look(self, connection: Connection) -> int:
        """Wake runs that have no run before them; return how many. The pass then sends them."""
        found = turns.parked(connection, self._reached, AT_ONCE)
        self._reached = found[-1] if len(found) == AT_ONCE else FIRST
        return len(turns.wake(connection, found, carried=False)) if found else 0
