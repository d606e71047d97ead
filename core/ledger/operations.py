"""Operations of people on runs: retry dead runs, and drop runs that must not run any more.

A retried run keeps its id, its attempts and its last error, and gets all its retries again. It waits as ``retrying``,
to which no misfire policy applies, and is claimed like any other run. A dropped run is ``dead`` with the reason
``dropped``, since it will not be tried again. Its former state and reason are kept. No row is deleted, since every slot
must have an outcome.

Each operation is one conditional statement. If two people request the same operation, only one statement changes the
run.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Text, cast, func, literal, or_, select, text
from sqlalchemy.dialects.postgresql import JSONB

from core.jobs.job import Job
from core.ledger.cancels import CANCELLED
from core.ledger.models import WAITING, RunRow, State

RUNS = RunRow.__table__
RETRIABLE = (State.DEAD,)
DROPPABLE = (*WAITING, State.DEAD)
DROPPED = "dropped"
#: The states in which a run can have a reason.
WITH_REASON = frozenset(State) - {State.SUCCEEDED, State.RUNNING}
#: The states in which a run can have an error of its own.
WITH_ERROR = frozenset(State) - {State.SUCCEEDED, State.SKIPPED, State.MISSED}
#: The reasons of dead runs that a person or an application has withdrawn. They are not failures.
WITHDRAWN = (DROPPED, CANCELLED)
#: The condition for a withdrawn run, in SQL.
IS_WITHDRAWN = "coalesce(reason, '') IN ('dropped', 'cancelled')"
COLUMNS: Sequence[ColumnElement[Any]] = (RUNS.c.id, RUNS.c.job, RUNS.c.state, RUNS.c.reason)

#: The rows are locked in the order of their ids, so that two such statements cannot deadlock.
RETRY = text(f"""
    UPDATE rota_runs AS run SET
        state = 'retrying', reason = 'by hand', failures = 0, crashes = 0, laters = NULL,
        later_since = NULL, retried_at = clock_timestamp(),
        retried_after = attempt, queue = present.queue, exclusive = present.exclusive, due_at = clock_timestamp(),
        sent_at = NULL, finished_at = NULL, former_state = NULL, former_reason = NULL
    FROM unnest(CAST(:jobs AS text[]), CAST(:queues AS text[]), CAST(:exclusives AS boolean[]))
        AS present (job, queue, exclusive)
    WHERE run.job = present.job AND run.id IN (
        SELECT id FROM rota_runs
        WHERE id = ANY(:run_ids) AND state = 'dead' AND (:even_withdrawn OR NOT {IS_WITHDRAWN})
        ORDER BY id FOR UPDATE)
    RETURNING run.id
""")  # noqa: S608 — a constant

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
    """The conditions for runs to be selected. A condition that is None is not checked."""

    states: Sequence[State]
    jobs: Collection[str] | None = None
    queue: str | None = None
    #: The time when a run ended or, if the run has not ended, the time when it was queued.
    since: datetime | None = None
    until: datetime | None = None
    #: A part of the error's text, in any case.
    error: str | None = None
    reason: str | None = None
    limit: int | None = None
    #: Whether dropped and cancelled runs are selected too when no reason is given.
    even_withdrawn: bool = False
    key: str | None = None
    #: Arguments: for each, the JSON objects of which a run's arguments must contain one.
    args: Sequence[Sequence[Mapping[str, Any]]] = ()

    @property
    def possible_states(self) -> list[State]:
        """The states of runs that can meet these conditions."""
        found = [State(state) for state in self.states]
        if self.reason is not None:
            found = [state for state in found if state in WITH_REASON]
        if self.error is not None:
            found = [state for state in found if state in WITH_ERROR]
        return found

    @property
    def is_by_time(self) -> bool:
        """Whether a list of these runs is in the order of time, which is so if a time is given, or if no succeeded run
        is among them. Otherwise, it is in the order of ids.
        """
        return self.since is not None or self.until is not None or State.SUCCEEDED not in self.possible_states

    @property
    def has_key(self) -> bool:
        """Whether an index has the key. Runs with the empty key are found by their job."""
        return bool(self.key)

    @property
    def is_search(self) -> bool:
        """Whether there are conditions that no index has."""
        return any(True for _ in self.unindexed())

    @property
    def indexed(self) -> "Filter":
        """The same conditions without those that no index has. The possible states stay the same."""
        key = self.key if self.has_key else None
        return replace(self, states=self.possible_states, queue=None, error=None, reason=None, args=(), key=key)

    def conditions(self) -> Iterable[ColumnElement[bool]]:
        """Return the conditions in SQL. By default, dropped and cancelled runs are selected only by their reason."""
        instant = func.coalesce(RUNS.c.finished_at, RUNS.c.queued_at)
        yield RUNS.c.state.in_([str(state) for state in self.states])
        yield from self.of_jobs()
        if self.since is not None:
            yield instant >= self.since
        if self.until is not None:
            yield instant < self.until
        yield from self.others()

    def of_jobs(self) -> Iterable[ColumnElement[bool]]:
        """Return the condition on the job."""
        if self.jobs is not None:
            yield RUNS.c.job.in_(sorted(self.jobs))

    def others(self) -> Iterable[ColumnElement[bool]]:
        """Return the conditions on other columns than the state, the job and the times."""
        if self.has_key:
            yield RUNS.c.key == self.key
        yield from self.unindexed()
        if self.reason is None and not self.even_withdrawn:
            yield or_(RUNS.c.reason.is_(None), RUNS.c.reason.not_in(WITHDRAWN))

    def unindexed(self) -> Iterable[ColumnElement[bool]]:
        """Return the conditions that no index has."""
        if self.key is not None and not self.has_key:
            yield RUNS.c.key == self.key
        if self.queue is not None:
            yield RUNS.c.queue == self.queue
        if self.error is not None:
            yield func.strpos(func.lower(RUNS.c.error), self.error.lower()) > 0
        if self.reason is not None:
            yield RUNS.c.reason == self.reason
        for either in self.args:
            yield or_(*[RUNS.c.args.bool_op("@>")(cast(literal(json.dumps(each), Text), JSONB)) for each in either])


def chosen(connection: Connection, wanted: Filter) -> Sequence[Row[Any]]:
    """Return the id, job, state and reason of each run that meets ``wanted``, the oldest first."""
    query = select(*COLUMNS).where(*wanted.conditions()).order_by(RUNS.c.id).limit(wanted.limit)
    return connection.execute(query).all()


def named(connection: Connection, run_ids: Collection[int]) -> Sequence[Row[Any]]:
    """Return the id, job, state and reason of each of these runs that exists, the oldest first."""
    query = select(*COLUMNS).where(RUNS.c.id.in_(run_ids)).order_by(RUNS.c.id)
    return connection.execute(query).all()


def retry(
    connection: Connection, run_ids: Collection[int], jobs: Collection[Job], *, even_withdrawn: bool = True
) -> list[int]:
    """Retry the dead runs among ``run_ids`` that belong to ``jobs``, with the jobs' present options. Return their ids.

    With ``even_withdrawn``, dropped and cancelled runs are retried too.
    """
    parameters = {
        "run_ids": list(run_ids),
        "jobs": [job.name for job in jobs],
        "queues": [job.queue for job in jobs],
        "exclusives": [job.exclusive for job in jobs],
        "even_withdrawn": even_withdrawn,
    }
    return list(connection.execute(RETRY, parameters).scalars())


def drop(connection: Connection, run_ids: Collection[int]) -> list[int]:
    """Drop the waiting and dead runs among ``run_ids`` that were not dropped before. Return their ids."""
    return list(connection.execute(DROP, {"run_ids": list(run_ids)}).scalars())
