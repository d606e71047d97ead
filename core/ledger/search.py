"""Searches runs by conditions that no index has: the text of an error, an argument, a reason, a queue.

A search walks the list of the other conditions, part by part, and stops when it has found enough, or when it has looked
at many runs or for a long time. It then says how far it has looked, and a further search can begin at that place. So a
search always answers soon, and never leaves out a run in silence.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, select

from core.ledger.listing import RUNS, Place, candidates, in_order, newest
from core.ledger.operations import Filter

#: A search stops after it has looked at this many runs.
MOST_LOOKED_AT = 100_000
#: A search stops after this time.
LONGEST = timedelta(milliseconds=300)
#: The first part of a search has this many runs for each run that is wanted.
FIRST = 4
#: Each later part has this many times the runs of the part before.
GROWTH = 4
#: The largest part.
LARGEST = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found, and how far it has looked."""

    runs: list[Row[Any]]
    #: The last run that was looked at, and its time. None if the list has no further runs.
    reached: Place | None = None
    reached_at: datetime | None = None


def found(connection: Connection, wanted: Filter, limit: int, after: Place | None = None) -> Found:
    """Return the newest runs that meet ``wanted``, at most ``limit``, and how far the search has looked."""
    if not wanted.is_search:
        return Found(newest(connection, wanted, limit, after))
    ids: list[int] = []
    place, looked_at, size, ends = after, 0, min(FIRST * limit, LARGEST), time.monotonic() + LONGEST.total_seconds()
    while True:
        part = looked(connection, wanted, size, place)
        ids += [row.id for row in part if row.fits]
        looked_at += size
        if not part or part[-1].looked_at < size:
            return Found(rows(connection, wanted, ids[:limit]))
        place = Place(part[-1].id, part[-1].rank if wanted.is_by_time else None)
        if len(ids) >= limit:
            return Found(rows(connection, wanted, ids[:limit]))
        if looked_at >= MOST_LOOKED_AT or time.monotonic() >= ends:
            return Found(rows(connection, wanted, ids), place, part[-1].at)
        size = min(size * GROWTH, LARGEST)


def looked(connection: Connection, wanted: Filter, size: int, after: Place | None) -> list[Row[Any]]:
    """Return which of the next ``size`` runs fit, and the last of these runs in any case."""
    query = part(wanted, size, after)
    return list(connection.execute(query).all()) if query is not None else []


def part(wanted: Filter, size: int, after: Place | None) -> Select[Any] | None:
    """Return the query for the next part of a search, or None if no run can meet ``wanted``."""
    fits = func.coalesce(and_(*wanted.unindexed()), False)
    walked = candidates(wanted.indexed, size, after, fits)
    if walked is None:
        return None
    order = (walked.c.rank.desc(), walked.c.id.desc())
    numbered = select(
        walked, func.row_number().over(order_by=order).label("number"), func.count().over().label("looked_at")
    ).subquery()
    instant = func.coalesce(RUNS.c.finished_at, RUNS.c.queued_at).label("at")
    query = select(numbered, instant).join(RUNS, RUNS.c.id == numbered.c.id)
    query = query.where(numbered.c.fits | (numbered.c.number == numbered.c.looked_at))
    return query.order_by(numbered.c.number)


def rows(connection: Connection, wanted: Filter, ids: list[int]) -> list[Row[Any]]:
    """Return the runs of these ids, in the order of the list."""
    return list(connection.execute(in_order(wanted, select(RUNS).where(RUNS.c.id.in_(ids)))).all()) if ids else []
