"""Lists runs by filter, the newest first, and the runs that one run has enqueued. The queries read hardly more rows
than they return.

A history may have ten million runs, and hardly any index has all of them. So a list is made of *arms*. An arm is a
query that reads one index in the right order and stops early. The list has the newest of the runs that the arms return.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, or_, select, text, union_all

from core.ledger.models import FINAL, WAITING, RunRow, State
from core.ledger.operations import Filter

RUNS = RunRow.__table__
#: The states in which a run can have a reason.
WITH_REASON = frozenset(State) - {State.SUCCEEDED, State.RUNNING}
#: The states in which a run can have an error of its own.
WITH_ERROR = frozenset(State) - {State.SUCCEEDED, State.SKIPPED, State.MISSED}
#: The states whose index is in the order of ids. The runs of any other state are few compared to the history, so all of
#: them are read and sorted. They are sorted by an expression, since PostgreSQL would otherwise read the whole history
#: in the order of ids.
INDEXED_BY_ID = frozenset({State.DEAD, State.SKIPPED, State.MISSED})
#: At most this many of the runs that a run has enqueued are shown: the newest ones.
MOST_CHILDREN = 50

CHILDREN = text("""
    SELECT id, job, key, state FROM rota_runs WHERE parent_id = :run_id ORDER BY id DESC LIMIT :most
""")


@dataclass(frozen=True, slots=True)
class Place:
    """The last run of a page: its id, and its time if the list is in the order of time."""

    id: int
    at: datetime | None = None


def newest(connection: Connection, wanted: Filter, limit: int, after: Place | None = None) -> list[Row[Any]]:
    """Return the newest runs that meet ``wanted``, ordered by their ids, or by their times if ``wanted`` has a time."""
    query = statement(wanted, limit, after)
    return list(connection.execute(query).all()) if query is not None else []


def statement(wanted: Filter, limit: int, after: Place | None = None) -> Select[Any] | None:
    """Return the query for the newest runs, or None if no run can meet ``wanted``."""
    is_by_time = wanted.is_by_time
    pieces = [arm.newest(limit, after) for arm in (by_time(wanted) if is_by_time else by_id(wanted))]
    if not pieces:
        return None
    found = union_all(*[select(piece.subquery()) for piece in pieces]).subquery()
    first = select(found.c.id).order_by(found.c.rank.desc(), found.c.id.desc()).limit(limit)
    rank = func.coalesce(RUNS.c.finished_at, RUNS.c.queued_at) if is_by_time else RUNS.c.id
    return select(RUNS).where(RUNS.c.id.in_(first)).order_by(rank.desc(), RUNS.c.id.desc())


def children(connection: Connection, run_id: int) -> list[Row[Any]]:
    """Return the newest runs that a run has enqueued: one more than is shown, if there are more."""
    return list(connection.execute(CHILDREN, {"run_id": run_id, "most": MOST_CHILDREN + 1}).all())


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the queries whose results make up a list."""

    conditions: Sequence[ColumnElement[bool]]
    #: The value by which runs are sorted. The newest run has the greatest value.
    rank: ColumnElement[Any]
    #: The columns that come before ``rank`` in the arm's index.
    prefix: Sequence[ColumnElement[Any]] = ()
    is_by_id: bool = True

    def newest(self, limit: int, after: Place | None = None) -> Select[Any]:
        """Return the query for the ids of the arm's newest runs, each with its rank. With ``after``, only runs after
        this place are found.
        """
        query = select(RUNS.c.id, self.rank.label("rank")).where(*self.conditions, *self.beyond(after))
        ties = () if self.is_by_id else (RUNS.c.id,)
        return query.order_by(*[column.desc() for column in (*self.prefix, self.rank, *ties)]).limit(limit)

    def beyond(self, place: Place | None) -> Iterator[ColumnElement[bool]]:
        """Return the conditions for a run to come after ``place``. Runs of one instant are ordered by their ids."""
        if place is not None and place.at is not None:
            yield self.rank <= place.at
            yield or_(self.rank < place.at, RUNS.c.id < place.id)
        elif place is not None:
            yield self.rank < place.id


def by_id(wanted: Filter) -> Iterator[Arm]:
    """Return the arms of a list that is ordered by id: one arm for all states, or one arm for each job."""
    states = states_of(wanted)
    if len(states) == len(State):
        yield from of_jobs(wanted)
        return
    for state in states:
        if state == State.SUCCEEDED:
            yield from of_jobs(wanted)
        else:
            rank = RUNS.c.id if state in INDEXED_BY_ID else RUNS.c.id + 0
            yield from (Arm([*of_state, *wanted.conditions()], rank) for of_state in parts(state))


def by_time(wanted: Filter) -> Iterator[Arm]:
    """Return the arms of a list that is ordered by time: by the end of a run, or by its request if it has not ended."""
    states = states_of(wanted)
    if any(state in FINAL for state in states):
        span = within(RUNS.c.finished_at, wanted.since, wanted.until)
        yield Arm([RUNS.c.finished_at.is_not(None), *span, *wanted.conditions()], RUNS.c.finished_at, is_by_id=False)
    for state in states:
        if state not in FINAL:
            yield from (
                Arm([*of_state, *wanted.conditions()], RUNS.c.queued_at, is_by_id=False) for of_state in parts(state)
            )


def of_jobs(wanted: Filter) -> Iterator[Arm]:
    """Return an arm for each job in ``wanted``, or one arm for all runs if ``wanted`` names no job.

    The condition on the job is a range, and the job comes first in ORDER BY, so that PostgreSQL uses the index by job
    and id. Otherwise, PostgreSQL may search the newest runs of all jobs for the runs of one job.
    """
    if wanted.jobs is None:
        yield Arm(list(wanted.conditions()), RUNS.c.id)
        return
    others = list(replace(wanted, jobs=None).conditions())
    for job in sorted(wanted.jobs):
        yield Arm([RUNS.c.job >= job, RUNS.c.job <= job, *others], RUNS.c.id, [RUNS.c.job])


def parts(state: State) -> Iterator[Sequence[ColumnElement[bool]]]:
    """Return conditions that together select a state other than ``succeeded``. Each condition has an index with hardly
    any other runs.
    """
    is_state = RUNS.c.state == state
    if state in WAITING:
        yield [is_state, RUNS.c.sent_at.is_(None)]
        yield [is_state, RUNS.c.sent_at.is_not(None)]
    else:
        yield [is_state]


def states_of(wanted: Filter) -> list[State]:
    """Return the states of runs that can meet ``wanted``."""
    found = [State(state) for state in wanted.states]
    if wanted.reason is not None:
        found = [state for state in found if state in WITH_REASON]
    if wanted.error is not None:
        found = [state for state in found if state in WITH_ERROR]
    return found


def within(column: ColumnElement[Any], since: datetime | None, until: datetime | None) -> Iterator[ColumnElement[bool]]:
    """Return the conditions for ``column`` to be in a span. An index of the column can check them."""
    if since is not None:
        yield column >= since
    if until is not None:
        yield column < until
