"""Lists runs by filter, the newest first, and the runs that one run has enqueued. The queries read hardly more rows
than they return.

A history may have ten million runs, and hardly any index has all of them. So a list is made of *arms*. An arm is a
query that reads one index in the right order and stops early. The list has the newest of the runs that the arms return.

For some conditions there is no index, such as the text of an error. ``core/ledger/search.py`` looks for their runs.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    Text,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from core.ledger.models import FINAL, HAS_KEY, UNHAPPY, WAITING, RunRow, State
from core.ledger.operations import Filter

RUNS = RunRow.__table__
#: At most this many of the runs that a run has enqueued are shown: the newest ones.
MOST_CHILDREN = 50

CHILDREN = text("""
    SELECT id, job, key, state FROM rota_runs
    WHERE parent_id = :run_id AND (CAST(:jobs AS text[]) IS NULL OR job = ANY(:jobs)) ORDER BY id DESC LIMIT :most
""")


@dataclass(frozen=True, slots=True)
class Place:
    """The last run of a page: its id, and its time if the list is in the order of time."""

    id: int
    at: datetime | None = None


def newest(connection: Connection, wanted: Filter, limit: int, after: Place | None = None) -> list[Row[Any]]:
    """Return the newest runs that meet ``wanted``, ordered by their ids, or by their times if ``wanted.is_by_time``."""
    query = statement(wanted, limit, after)
    return list(connection.execute(query).all()) if query is not None else []


def statement(wanted: Filter, limit: int, after: Place | None = None) -> Select[Any] | None:
    """Return the query for the newest runs, or None if no run can meet ``wanted``."""
    found = candidates(wanted, limit, after, true())
    if found is None:
        return None
    return in_order(wanted, select(RUNS).where(RUNS.c.id.in_(select(found.c.id))))


def in_order(wanted: Filter, query: Select[Any]) -> Select[Any]:
    """Return ``query`` with its runs in the order of the list."""
    ranks = (func.coalesce(RUNS.c.finished_at, RUNS.c.queued_at), RUNS.c.id) if wanted.is_by_time else (RUNS.c.id,)
    return query.order_by(*[rank.desc() for rank in ranks])


def candidates(
    wanted: Filter, limit: int, after: Place | None, fits: ColumnElement[bool]
) -> FromClause | None:  # fmt: skip
    """Return a query for the newest runs: each run's ``id``, its ``rank`` in the list, and whether it ``fits``.

    Return None if no run can meet ``wanted``.
    """
    arms = by_time(wanted) if wanted.is_by_time else by_id(wanted)
    pieces = [select(arm.newest(limit, after, fits).subquery()) for arm in arms]
    if not pieces:
        return None
    found = union_all(*pieces).subquery()
    return select(found).order_by(found.c.rank.desc(), found.c.id.desc()).limit(limit).subquery()


def children(connection: Connection, run_id: int, jobs: Collection[str] | None = None) -> list[Row[Any]]:
    """Return the newest runs that a run has enqueued: one more than is shown, if there are more.

    With ``jobs``, return only runs of these.
    """
    seen = None if jobs is None else list(jobs)
    return list(connection.execute(CHILDREN, {"run_id": run_id, "jobs": seen, "most": MOST_CHILDREN + 1}).all())


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the queries whose results make up a list."""

    conditions: Sequence[ColumnElement[bool]]
    #: The value by which runs are sorted. The newest run has the greatest value.
    rank: ColumnElement[Any]
    is_by_id: bool = True
    #: The jobs whose runs are read, each from an index that begins with the job; None for the runs of all jobs.
    jobs: Sequence[str] | None = None

    def newest(self, limit: int, after: Place | None, fits: ColumnElement[bool]) -> Select[Any]:
        """Return the query for the arm's newest runs. With ``after``, only runs after this place are found."""
        query = select(RUNS.c.id, self.rank.label("rank"), fits.label("fits"))
        query = query.where(*self.conditions, *self.beyond(after)).limit(limit)
        ranks = (self.rank,) if self.is_by_id else (self.rank, RUNS.c.id)
        if self.jobs is None:
            return query.order_by(*[rank.desc() for rank in ranks])
        return self.of_each_job(query, ranks)

    def of_each_job(self, query: Select[Any], ranks: Sequence[ColumnElement[Any]]) -> Select[Any]:
        """Return ``query`` for each of the jobs.

        The condition on the job is a range, and the job comes first in ORDER BY, so that PostgreSQL uses the index that
        begins with the job. Otherwise, PostgreSQL may search the newest runs of all jobs for the runs of one job.
        """
        wanted = select(func.unnest(literal(list(self.jobs or ()), ARRAY(Text))).label("job")).subquery("wanted")
        of_job = query.where(RUNS.c.job >= wanted.c.job, RUNS.c.job <= wanted.c.job)
        in_index = of_job.order_by(*[column.desc() for column in (RUNS.c.job, *ranks)]).lateral("of_job")
        return select(in_index).select_from(wanted.join(in_index, true()))

    def beyond(self, place: Place | None) -> Iterator[ColumnElement[bool]]:
        """Return the conditions for a run to come after ``place``. Runs of one instant are ordered by their ids."""
        if place is not None and place.at is not None:
            yield self.rank <= place.at
            yield or_(self.rank < place.at, RUNS.c.id < place.id)
        elif place is not None:
            yield self.rank < place.id


def by_id(wanted: Filter) -> Iterator[Arm]:
    """Return the arms of a list that is ordered by id. It has succeeded runs, and perhaps runs in all other states."""
    states = wanted.possible_states
    if wanted.has_key:
        # The sum is not in any index, so PostgreSQL does not read the whole history in the order of ids.
        yield from of_key(wanted, RUNS.c.id + 0, is_by_id=True)
        return
    of_states = [] if len(states) == len(State) else [RUNS.c.state.in_(states)]
    yield Arm([*of_states, *wanted.others()], RUNS.c.id, jobs=sorted_jobs(wanted))


def by_time(wanted: Filter) -> Iterator[Arm]:
    """Return the arms of a list that is ordered by time: by the end of a run, or by its request if it has not ended."""
    states = wanted.possible_states
    if wanted.has_key:
        yield from of_key(wanted, func.coalesce(RUNS.c.finished_at, RUNS.c.queued_at), is_by_id=False)
        return
    if State.SUCCEEDED in states:
        yield ended(wanted, [RUNS.c.state.in_(states)])
    else:
        yield from (unhappy(wanted, state) for state in states if state in UNHAPPY)
    for state in (state for state in states if state not in FINAL):
        yield from live(wanted, state, RUNS.c.queued_at, is_by_id=False)


def ended(wanted: Filter, of_states: Sequence[ColumnElement[bool]]) -> Arm:
    """Return the arm of all runs that have ended."""
    conditions = [RUNS.c.finished_at.is_not(None), *within(RUNS.c.finished_at, wanted), *of_states]
    return Arm([*conditions, *wanted.of_jobs(), *wanted.others()], RUNS.c.finished_at, is_by_id=False)


def unhappy(wanted: Filter, state: State) -> Arm:
    """Return the arm of the runs that have ended in a state other than ``succeeded``. Two indexes have only these."""
    conditions = [RUNS.c.state == state, *within(RUNS.c.finished_at, wanted), *wanted.others()]
    return Arm(conditions, RUNS.c.finished_at, is_by_id=False, jobs=sorted_jobs(wanted))


def live(wanted: Filter, state: State, rank: ColumnElement[Any], *, is_by_id: bool) -> Iterator[Arm]:
    """Return the arms of the runs in a state that is not final. They are few compared to the history, so all of them
    are read and sorted.
    """
    for of_state in parts(state):
        conditions = [*of_state, *within(RUNS.c.queued_at, wanted), *wanted.of_jobs(), *wanted.others()]
        yield Arm(conditions, rank, is_by_id=is_by_id)


def of_key(wanted: Filter, rank: ColumnElement[Any], *, is_by_id: bool) -> Iterator[Arm]:
    """Return the arms of the runs of one key. All runs of the key are read and sorted, from an index that has its slots
    and its runs that have ended. Of its requests, other indexes have those that wait or run.
    """
    states = wanted.possible_states
    instant = func.coalesce(RUNS.c.finished_at, RUNS.c.queued_at)
    of_states = [] if len(states) == len(State) else [RUNS.c.state.in_(states)]
    conditions = [literal_column(f"({HAS_KEY})", Boolean), *of_states, *within(instant, wanted), *wanted.others()]
    if wanted.jobs is None:
        raise ValueError("a list by key needs the jobs that may have the key")
    yield Arm([RUNS.c.job.in_(sorted(wanted.jobs)), *conditions], rank, is_by_id=is_by_id)
    for state in (state for state in states if state not in FINAL):
        for arm in live(wanted, state, rank, is_by_id=is_by_id):
            yield Arm([*arm.conditions, RUNS.c.slot.is_(None)], rank, is_by_id=is_by_id)


def sorted_jobs(wanted: Filter) -> Sequence[str] | None:
    """Return the jobs that ``wanted`` names, sorted, or None for all jobs."""
    return None if wanted.jobs is None else sorted(wanted.jobs)


def parts(state: State) -> Iterator[Sequence[ColumnElement[bool]]]:
    """Return conditions that together select a state that is not final. Each condition has an index with hardly any
    other runs.
    """
    is_state = RUNS.c.state == state
    if state in WAITING:
        yield [is_state, RUNS.c.sent_at.is_(None)]
        yield [is_state, RUNS.c.sent_at.is_not(None)]
    else:
        yield [is_state]


def within(column: ColumnElement[Any], wanted: Filter) -> Iterator[ColumnElement[bool]]:
    """Return the conditions for ``column`` to be in the span of ``wanted``. An index of the column can check them."""
    if wanted.since is not None:
        yield column >= wanted.since
    if wanted.until is not None:
        yield column < wanted.until
