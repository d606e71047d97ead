"""Wakes parked runs: runs that wait for another run of their job and key, or for room under a limit.

Normally, the process of the run that has ended wakes the next run. The dispatcher wakes it if this process died or lost
PostgreSQL. It also wakes runs when a limit is refilled, or when a closing ends.
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
    """Wakes runs that wait for another run. Each pass checks some jobs and keys with parked runs, and the next pass
    continues.
    """

    def __init__(self) -> None:
        self._reached = FIRST

    def look(self, connection: Connection) -> int:
        """Wake parked runs whose turn has come. Return how many. The pass then sends these runs."""
        found = turns.parked(connection, self._reached, AT_ONCE)
        self._reached = found[-1] if len(found) == AT_ONCE else FIRST
        return len(turns.wake(connection, found, carried=False)) if found else 0


class RoomKeeper:
    """Wakes runs that wait for a limit. Each check takes some limits with parked runs, and the next check continues."""

    def __init__(self) -> None:
        self._reached = ""
        #: The next time, by the monotonic clock, when one of the checked limits is refilled or its closing ends.
        self.due_at = float("inf")

    def look(self, connection: Connection, jobs: Collection[str]) -> int:
        """Wake runs of ``jobs`` for which there is room. Return how many. The caller then sends these runs."""
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
