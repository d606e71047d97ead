"""Ends the waiting runs and messages of jobs that are gone, and adopts the runs of jobs that have come back.

A job is gone when no process with the job has been alive for ``ROTA_ORPHAN_SECONDS``. The releases record that time, so
a change of leader does not start it again. In addition, a new leader waits for up to a minute: after an outage of the
whole service, hosts start one after another. A job that no release ever had is not gone: its runs wait for a release
that has it.
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import redis
from sqlalchemy import Connection

from core.jobs.registry import Registry
from core.ledger import due, history, orphans, releases
from core.ledger.carrier import DispatchCarrier
from core.ledger.models import State
from core.ledger.releases import Fleet, LastHad
from core.observability import metrics
from core.observability.events import (
    DispatcherQueueNotCleared,
    DispatcherQueuesNotSearched,
    MessageCleared,
    RunMoved,
    RunOrphaned,
    RunReadopted,
    SlotForgotten,
    emit,
)

#: How often to look for jobs and queues that are gone, in seconds.
LOOK_SECONDS = 5.0
#: A leader itself must have seen a job missing for this many seconds, or for the grace if the grace is shorter.
SEEN_MISSING_SECONDS = 60.0
#: One search ends at most this many batches of one job. The next search continues, so that other steps of the pass are
#: not delayed.
MOST_BATCHES = 20
#: One search takes at most this many seconds for all jobs.
LONGEST_SECONDS = 0.5


@dataclass(slots=True)
class Absence:
    """The times since which jobs or queues have been missing without a break."""

    grace_seconds: float
    since: dict[str, float] = field(default_factory=dict)

    def over(self, missing: Iterable[str], now: float) -> list[str]:
        """Return which of ``missing`` have been missing for longer than the grace. Names that are not in ``missing``
        are back, and are forgotten.
        """
        self.since = {name: self.since.get(name, now) for name in missing}
        return [name for name, since in self.since.items() if now - since >= self.grace_seconds]


class OrphanKeeper:
    """Ends the runs and messages of jobs that are gone, and adopts the runs of jobs that are back, in the leading
    dispatcher.
    """

    def __init__(self, registry: Registry, carrier: DispatchCarrier, grace_seconds: float) -> None:
        self._registry = registry
        self._carrier = carrier
        self._grace_seconds = grace_seconds
        self._jobs = Absence(min(grace_seconds, SEEN_MISSING_SECONDS))
        self._queues = Absence(grace_seconds)
        #: The jobs that live processes have and for which no orphan is left to adopt.
        self._present: set[str] = set()
        self._looked_at = float("-inf")

    def is_time_to_look(self, now: float | None = None) -> bool:
        """Return whether it is time for the next search."""
        return (time.monotonic() if now is None else now) - self._looked_at >= LOOK_SECONDS

    def look(self, connection: Connection, fleet: Fleet, now: float | None = None) -> None:
        """Search for jobs that are gone or back, if it is time for the next search, and end or adopt their runs."""
        now = time.monotonic() if now is None else now
        if not self.is_time_to_look(now):
            return
        self._looked_at = now
        releases.see(connection)
        self._adopt(connection, fleet)
        if not fleet.is_complete:
            self._jobs.since, self._queues.since = {}, {}
            return
        self._end_runs(connection, fleet, now)
        self._end_messages(connection, fleet, now)

    def _end_runs(self, connection: Connection, fleet: Fleet, now: float) -> None:
        mentioned = {*history.jobs_seen(connection), *orphans.with_slots(connection)}
        missing = [job for job in sorted(mentioned) if job not in self._registry and not fleet.knows(job)]
        gone = self._jobs.over(missing, now)
        remaining = orphans.with_remains(connection, gone) if gone else set()
        had = releases.last_had(connection, remaining) if remaining else {}
        ends_at = time.monotonic() + LONGEST_SECONDS
        for job in sorted(job for job in had if had[job].seconds >= self._grace_seconds):
            if time.monotonic() >= ends_at:
                break
            end_runs(connection, job, reason(self._registry, had[job]))

    def _adopt(self, connection: Connection, fleet: Fleet) -> None:
        """Adopt the runs of jobs that are back, if the runs were orphaned because no process had their job."""
        back = fleet.queues_of.keys() - self._present
        found = sorted(orphans.with_absent(connection, back)) if back else []
        ends_at = time.monotonic() + LONGEST_SECONDS
        unfinished = {job for job in found if time.monotonic() >= ends_at or not adopt_runs(connection, job, fleet)}
        self._present = set(fleet.queues_of) - unfinished

    def _end_messages(self, connection: Connection, fleet: Fleet, now: float) -> None:
        used = {*fleet.queues, *(job.queue for job in self._registry)}
        abandoned = releases.queues_ever(connection) - used  # so queues of another service are never abandoned
        try:
            found = self._carrier.queues_with_messages() & abandoned
        except redis.RedisError as error:
            emit(DispatcherQueuesNotSearched(str(error)))
            return
        for queue in self._queues.over(sorted(found), now):
            self._end_queue(connection, queue, fleet)

    def _end_queue(self, connection: Connection, queue: str, fleet: Fleet) -> None:
        if not move_runs(connection, queue, fleet):
            return  # the messages stay in the queue, so the next search finds the queue again
        try:
            for (job, outcome), count in self._carrier.clear_abandoned(queue, fleet).items():
                emit(MessageCleared(queue, job, count, str(outcome)))
        except redis.RedisError as error:
            emit(DispatcherQueueNotCleared(queue, str(error)))


def move_runs(connection: Connection, queue: str, fleet: Fleet) -> bool:
    """Move the waiting runs of ``queue`` to the present queues of their jobs. Return whether no such runs are left."""
    present, moved = {job: min(queues) for job, queues in fleet.queues_of.items()}, 0
    for _ in range(MOST_BATCHES):
        batch = due.move(connection, queue, present)
        moved += batch
        if batch < due.BATCH:
            break
    if moved:
        emit(RunMoved(queue, moved))
    return moved < MOST_BATCHES * due.BATCH


def end_runs(connection: Connection, job: str, why: str) -> int:
    """Orphan the waiting and dead runs of ``job``, and stop accounting for its slots.

    Return how many runs were orphaned.
    """
    ended, last = 0, 0
    for _ in range(MOST_BATCHES):
        batch = orphans.end(connection, job, why, after=last)
        ended += len(batch)
        if len(batch) < orphans.BATCH:
            break
        last = batch[-1]
    metrics.runs_ended(job, Counter({State.ORPHANED: ended}))
    if ended:
        emit(RunOrphaned(job, ended, why))
    if orphans.forget_slots(connection, job):
        emit(SlotForgotten(job, why))
    return ended


def adopt_runs(connection: Connection, job: str, fleet: Fleet) -> bool:
    """Adopt the runs of ``job`` that were orphaned while no process had it. Return whether no such runs are left."""
    adopted, batch = 0, orphans.BATCH
    for _ in range(MOST_BATCHES):
        batch = orphans.readopt(connection, job, fleet.queues_of[job], batch=orphans.BATCH)
        adopted += batch
        if batch < orphans.BATCH:
            break
    if adopted:
        emit(RunReadopted(job, adopted))
    return batch < orphans.BATCH


def reason(registry: Registry, had: LastHad) -> str:
    """Return the reason why a job is gone. If a newer release removed the job, the reason is the state of the job's
    plugin on this host.
    """
    if not had.is_taken_away:
        return orphans.ABSENT
    states = {found.name: found.state for found in registry.plugins}
    if had.plugin not in states:
        return "uninstalled"
    return states[had.plugin] if states[had.plugin] in ("disabled", "broken") else "unknown"
