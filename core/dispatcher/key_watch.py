"""Counts schedules made at run time for the metrics, by job and state."""

import time

from sqlalchemy import Connection

from core.ledger import key_listing, key_totals
from core.observability import metrics

#: The time between two counts, in seconds. A count reads all schedules. This takes about 0.1 s for a million schedules.
LOOK_SECONDS = 60.0


class KeyWatch:
    """Counts the schedules once a minute, in the leading dispatcher."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")

    def look(self, connection: Connection, now: float | None = None) -> None:
        """Count the schedules and export the numbers, if the next count is due."""
        now = time.monotonic() if now is None else now
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        jobs = key_listing.jobs(connection)
        metrics.schedules(by_state(connection, jobs) if jobs else {})


def by_state(connection: Connection, jobs: set[str]) -> dict[tuple[str, str], int]:
    """Return the number of schedules of each job in each state: active, paused or backing_off."""
    found: dict[tuple[str, str], int] = {}
    for job, row in key_totals.schedules(connection, jobs).items():
        found[job, "active"] = row.schedules - row.paused - row.backing_off
        found[job, "paused"], found[job, "backing_off"] = row.paused, row.backing_off
    return found
