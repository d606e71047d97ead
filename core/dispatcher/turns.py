"""Wakes parked runs that the process of the run before them could not wake: it died, or was without PostgreSQL.

Also wakes runs that wait for a limit, when a refill or the end of a closing makes room.
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
    """Checks jobs and keys with parked runs, some of them in each pass, so that all of them have their turn."""

    def __init__(self) -> None:
        self._reached = FIRST

    def look(self, connection: Connection) -> int:
        """Wake runs that no longer have a run before them. Return how many; the pass then sends them."""
        found = turns.parked(connection, self._reached, AT_ONCE)
        self._reached = found[-1] if len(found) == AT_ONCE else FIRST
        return len(turns.wake(connection, found, carried=False)) if found else 0


class RoomKeeper:
    """Checks some limits with parked runs in each pass, and when a refill or the end of a closing makes room."""

    def __init__(self) -> None:
        self._reached = ""
        #: The time, by the monotonic clock, when a limit of the last check is refilled or opens.
        self.due_at = float("inf")

    def look(self, connection: Connection, jobs: Collection[str]) -> int:
        """Wake runs of ``jobs`` for which there is room. Return how many; the caller then sends them."""
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
