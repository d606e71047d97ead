"""What people do to runs by hand: the dead are retried, and what is not to run any more is dropped.

A retried run keeps its id, its attempts and its last error, and has all its retries before it again. It waits as
``retrying``, which no misfire policy touches, and is claimed like any other. A dropped run is ``dead``, since it will
not be tried again, with the reason ``dropped``; what it was before is kept beside it. A slot must keep its row, so that
it has an outcome; that is why nothing is deleted.

Both are one conditional statement: of two people who ask for the same, one gets it.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, or_, select, text

from core.jobs.job import Job
from core.ledger.models import WAITING, RunRow, State

RUNS = RunRow.__table__
RETRIABLE = (State.DEAD,)
DROPPABLE = (*WAITING, State.DEAD)
DROPPED = "dropped"
COLUMNS: Sequence[ColumnElement[Any]] = (RUNS.c.id, RUNS.c.job, RUNS.c.state, RUNS.c.reason)

#: Locked in their order, so that two who ask for the same runs wait for one another rather than meeting halfway.
RETRY = text("""
    UPDATE rota_runs AS run SET
        state = 'retrying', reason = 'by hand', failures = 0, crashes = 0, retried_at = clock_timestamp(),
        retried_after = attempt, queue = present.queue, exclusive = present.exclusive, due_at = clock_timestamp(),
        sent_at = NULL, finished_at = NULL, former_state = NULL, former_reason = NULL
    FROM unnest(CAST(:jobs AS text[]), CAST(:queues AS text[]), CAST(:exclusives AS boolean[]))
        AS present (job, queue, exclusive)
    WHERE run.job = present.job AND run.id IN (
        SELECT id FROM rota_runs
        WHERE id = ANY(:run_ids) AND state = 'dead' AND (:even_dropped OR reason IS DISTINCT FROM 'dropped')
        ORDER BY id FOR UPDATE)
    RETURNING run.id
""")

DROP = text("""
    UPDATE rota_runs AS run SET
        former_state = state, former_reason = reason, state = 'dead', reason = 'dropped', sent_at = NULL,
        finished_at = coalesce(finished_at, clock_timestamp())
    WHERE run.id IN (
        SELECT id FROM rota_runs
        WHERE id = ANY(:run_ids) AND state IN ('queued', 'retrying', 'dead') AND reason IS DISTINCT FROM 'dropped'
        ORDER BY id FOR UPDATE)
    RETURNING run.id
""")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs are meant; what is None does not matter."""

    states: Sequence[State]
    jobs: Collection[str] | None = None
    queue: str | None = None
    #: When they ended, or if they have not, when they were queued.
    since: datetime | None = None
    until: datetime | None = None
    #: A part of the error's text, in whatever case.
    error: str | None = None
    reason: str | None = None
    limit: int | None = None

    def conditions(self) -> Iterable[ColumnElement[bool]]:
        """What is asked of a run; a dropped one is meant only if that reason is asked for."""
        instant = func.coalesce(RUNS.c.finished_at, RUNS.c.queued_at)
        yield RUNS.c.state.in_([str(state) for state in self.states])
        if self.jobs is not None:
            yield RUNS.c.job.in_(sorted(self.jobs))
        if self.queue is not None:
            yield RUNS.c.queue == self.queue
        if self.since is not None:
            yield instant >= self.since
        if self.until is not None:
            yield instant < self.until
        if self.error is not None:
            yield func.strpos(func.lower(RUNS.c.error), self.error.lower()) > 0
        if self.reason is not None:
            yield RUNS.c.reason == self.reason
        else:
            yield or_(RUNS.c.reason.is_(None), RUNS.c.reason != DROPPED)


def chosen(connection: Connection, wanted: Filter) -> Sequence[Row[Any]]:
    """The id, job, state and reason of each run that is ``wanted``, the oldest first."""
    query = select(*COLUMNS).where(*wanted.conditions()).order_by(RUNS.c.id).limit(wanted.limit)
    return connection.execute(query).all()


def named(connection: Connection, run_ids: Collection[int]) -> Sequence[Row[Any]]:
    """The id, job, state and reason of each of these runs that there is, the oldest first."""
    query = select(*COLUMNS).where(RUNS.c.id.in_(run_ids)).order_by(RUNS.c.id)
    return connection.execute(query).all()


def retry(connection: Connection, run_ids: Collection[int], jobs: Collection[Job], *, even_dropped: bool = True) -> int:
    """Have those of ``run_ids`` retried that are dead and of ``jobs``, as these are now; return how many.

    ``even_dropped``: what has been dropped, too.
    """
    parameters = {
        "run_ids": list(run_ids),
        "jobs": [job.name for job in jobs],
        "queues": [job.queue for job in jobs],
        "exclusives": [job.exclusive for job in jobs],
        "even_dropped": even_dropped,
    }
    return len(connection.execute(RETRY, parameters).all())


def drop(connection: Connection, run_ids: Collection[int]) -> int:
    """End those of ``run_ids`` that wait or are dead, for good; return how many."""
    return len(connection.execute(DROP, {"run_ids": list(run_ids)}).all())
