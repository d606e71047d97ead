"""Reports jobs that had no success although their slots came due, and runs that wait, as metrics and in the log."""

import time
from collections.abc import Collection

from sqlalchemy import Connection

from core.jobs.registry import Registry
from core.ledger import history, limit_use, overdue, queues
from core.ledger.overdue import WRONG_FROM, Standing
from core.observability import metrics
from core.observability.events import SlotCaughtUp, SlotOverdue, emit

#: How often to check, in seconds.
LOOK_SECONDS = 15.0


class Watch:
    """Checks regularly, in the leading dispatcher, which jobs had no success."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._wrong: set[str] = set()
        self._looked_at = float("-inf")

    def look(self, connection: Connection, held: Collection[str], now: float | None = None) -> None:
        """Do the next check if it is due. Do not report the jobs ``held`` by a pause."""
        now = time.monotonic() if now is None else now
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        standings = overdue.look(connection, self._registry.scheduled())
        overdue.remember(connection, standings)
        measure(standings, held)
        metrics.limited(limit_use.waiting(connection))
        measure_queues(connection, sorted({job.queue for job in self._registry}), held)
        self._complain([standing for standing in standings if standing.job not in held])

    def _complain(self, standings: Collection[Standing]) -> None:
        wrong = {standing.job: standing for standing in standings if standing.overdue >= WRONG_FROM}
        for job in sorted(wrong.keys() - self._wrong):
            since = wrong[job].succeeded_slot
            emit(SlotOverdue(job, wrong[job].overdue, since.isoformat() if since else None))
        for job in sorted(self._wrong - wrong.keys()):
            emit(SlotCaughtUp(job))
        self._wrong = set(wrong)


def measure_queues(connection: Connection, names: list[str], held: Collection[str]) -> None:
    """Export how many runs wait in each queue, and for how long the oldest has waited. Jobs ``held`` do not count for
    the time.
    """
    now = history.now(connection)
    sent = queues.oldest_sent(connection, names, held)
    seconds = {}
    rows = queues.waiting(connection, names, held)
    for row in rows:
        since = [at for at in (row.oldest_due_at, sent.get(row.queue)) if at is not None]
        seconds[row.queue] = max(0.0, (now - min(since, default=now)).total_seconds())
    metrics.queues({row.queue: row.due + row.sent for row in rows}, seconds)


def measure(standings: Collection[Standing], held: Collection[str]) -> None:
    """Export the jobs' standings as metrics."""
    metrics.overdue({each.job: 0 if each.job in held else each.overdue for each in standings})
    for each in standings:
        if each.succeeded_at is not None:
            metrics.succeeded_at(each.job, each.succeeded_at.timestamp())
