"""Wakes parked runs if the process of the run before them could not: it died, or was without PostgreSQL.

Runs that wait for a limit are also woken here when time makes room: a refill, or the end of a closing.
"""

import time
from collections.abc import Collection

from sqlalchemy import Connection

from core.ledger import room, turns
from core.ledger.turns import Turn

#: How many jobs and keys one pass checks.
AT_ONCE = 1000
FIRST = Turn("", "")
#: The shortest time between two checks of limits that have a rate, in seconds.
SHORTEST_SECONDS = 0.02


class TurnKeeper:
    """Checks the jobs and keys with parked runs in turn, some of them in each pass."""

    def __init__(self) -> None:
        self._reached = FIRST

    def look(self, connection: Connection) -> int:
        """Wake runs that have no run before them; return how many. The pass then sends them."""
        found = turns.parked(connection, self._reached, AT_ONCE)
        self._reached = found[-1] if len(found) == AT_ONCE else FIRST
        return len(turns.wake(connection, found, carried=False)) if found else 0


class RoomKeeper:
    """Looks at all limits with parked runs in turn, at some of them in each pass, and when time makes room."""

    def __init__(self) -> None:
        self._reached = ""
        #: When time makes room under a limit of the last look, by the monotonic clock.
        self.due_at = float("inf")

    def look(self, connection: Connection, jobs: Collection[str]) -> int:
        """Wake runs of ``jobs`` for which there is room; return how many. The caller then sends them."""
        self.due_at = float("inf")
        names = room.awaited(connection, self._reached, AT_ONCE)
        self._reached = names[-1] if len(names) == AT_ONCE else ""
        if not names:
            return 0
        woken = room.wake(connection, dict.fromkeys(names, room.MOST_WOKEN), jobs=jobs, carried=False)
        seconds = room.seconds_until_room(connection, names)
        if seconds is not None:
            self.due_at = time.monotonic() + max(seconds, SHORTEST_SECONDS)
        return len(woken)
