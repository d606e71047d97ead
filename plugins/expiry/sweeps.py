"""A sweep: every row that is due is ended, batch by batch, each batch one transaction.

**Slices and batches.** A slice is up to a million ids, read from the index of what is due, from where the last slice
stopped; its batches take those ids in the order of the ids. Rows that end together are mostly scattered over the table
in no order of their ends: batches in that order would each touch most of the table's pages, and a large sweep would
take twice as long. Walking on from the last slice, rather than starting again, spares reading the index entries of
rows that have ended since. What a sweep keeps in memory is one slice of ids, as text, whatever the size of the table:
some ten megabytes at most.

**Rows somebody else holds** are skipped, and counted as left: the next run finds them, if they are still due.

**Rows that break a rule** must not keep others from ending. A batch in which the database refuses a row is rolled back
to its beginning and done in halves, until that row is alone. Such rows, and those that no sweep could judge (without
an end, say: the database refuses them now, but an older system may have left some), stay as they are, are counted as
broken, and are named in the log once per run. An error of any other kind ends the run, which is then tried again; it
loses the batch it happened in and no other.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import BigInteger, ColumnElement, DateTime, Text, any_, cast, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute, Session

from core import Checkpoint

logger = logging.getLogger(__name__)

#: Each slice goes over all pages of the table: with a fifth of this, a large sweep takes a fifth longer
#: (``benchmarks/coupons.py``).
SLICE = 1_000_000
#: After so many refused rows, a batch that is refused is no longer taken apart.
MOST_ISOLATED = 100
#: Broken rows are counted up to here, and the first of them named.
MOST_COUNTED = 1000
MOST_NAMED = 20
#: PostgreSQL's classes of errors that are about a row's data: data exceptions, constraints, RAISE in a trigger.
ABOUT_ROWS = ("22", "23", "P0")

INSTANT = DateTime(timezone=True)


class Place(NamedTuple):
    """A place in the index of what is due; the instant as PostgreSQL's text, since Python cannot hold them all."""

    at: str
    id: int


@dataclass(frozen=True, slots=True)
class Ends:
    """Which rows of a table end by themselves, and when. The conditions are those of its partial indexes."""

    table: str
    id: InstrumentedAttribute[int]
    at: InstrumentedAttribute[datetime]
    is_open: ColumnElement[bool]
    is_broken: ColumnElement[bool]

    def due(self, now: datetime) -> ColumnElement[bool]:
        """Open, and at or past its end."""
        return self.is_open & (self.at <= now)


@dataclass(slots=True)
class Tally:
    """What a sweep has done so far."""

    word: str
    done: int = 0
    left: int = 0
    broken: int = 0
    named: list[int] = field(default_factory=list)
    error: DBAPIError | None = None

    @property
    def counts(self) -> dict[str, int]:
        return {self.word: self.done, "left": self.left, "broken": self.broken}

    def add_broken(self, ids: Sequence[int], error: DBAPIError | None = None) -> None:
        self.broken += len(ids)
        self.named += ids[: MOST_NAMED - len(self.named)]
        self.error = self.error or error

    def report(self, table: str) -> None:
        """Name the broken rows, for a person to look at."""
        if self.broken:
            why = str(self.error.orig).strip().partition("\n")[0] if self.error else "no end, or less than nothing left"
            first = ", ".join(map(str, self.named))
            logger.error("sweep.broken_rows table=%s count=%d ids=%s: %s", table, self.broken, first, why)

    def require_some_success(self) -> None:
        """Raise the first error if everything was refused: then it is hardly about the rows."""
        if self.error and not self.done and self.broken > MOST_ISOLATED:
            raise self.error


def sweep(
    session: Session,
    ends: Ends,
    now: datetime,
    end_rows: Callable[[Sequence[int]], int],
    *,
    word: str,
    checkpoint: Checkpoint,
    batch: int,
) -> dict[str, int]:
    """Have ``end_rows`` end every row of ``ends`` that is due, ``batch`` at a time; count those ended, left and broken.

    ``end_rows`` is given ids, locks those rows that are still due and not held by anyone else, ends them, and returns
    how many. ``word`` names them in the counts.
    """
    tally = Tally(word)
    try:
        tally.add_broken(find_broken(session, ends))
        for ids in batches(session, ends, now, batch):
            end_batch(session, ids, end_rows, tally)
            checkpoint(tally.counts)
    finally:
        tally.report(ends.table)
    tally.require_some_success()
    return tally.counts


def find_broken(session: Session, ends: Ends) -> Sequence[int]:
    """Rows that no sweep could judge; the first thousand."""
    return session.scalars(select(ends.id).where(ends.is_broken).order_by(ends.id).limit(MOST_COUNTED)).all()


def batches(session: Session, ends: Ends, now: datetime, batch: int) -> Iterator[list[int]]:
    """The ids of all rows that are due, ``batch`` at a time."""
    after: Place | None = None
    while found := read_slice(session, ends, now, batch, after):
        listed, after = found
        for ids in listed:
            yield [int(row_id) for row_id in ids.split(",")]


def read_slice(
    session: Session, ends: Ends, now: datetime, batch: int, after: Place | None
) -> tuple[list[str], Place] | None:
    """The ids of the next rows that are due, as a text for each batch, and where they end; None: there are no more."""
    onwards = ends.due(now)
    if after is not None:
        onwards &= tuple_(ends.at, ends.id) > tuple_(
            cast(literal(after.at, Text), INSTANT), literal(after.id, BigInteger)
        )
    due = select(ends.at.label("at"), ends.id.label("id")).where(onwards).order_by(ends.at, ends.id).limit(SLICE).cte()
    in_order = select(due.c.id, ((func.row_number().over(order_by=due.c.id) - 1) // batch).label("batch")).subquery()
    ids = func.string_agg(cast(in_order.c.id, Text), aggregate_order_by(literal(",", Text), in_order.c.id))
    last_at, last_id = (
        select(column).order_by(due.c.at.desc(), due.c.id.desc()).limit(1).scalar_subquery()
        for column in (cast(due.c.at, Text), due.c.id)
    )
    listed = select(ids, last_at, last_id).group_by(in_order.c.batch).order_by(in_order.c.batch)
    rows = session.execute(listed).all()
    return ([row[0] for row in rows], Place(rows[0][1], rows[0][2])) if rows else None


def end_batch(session: Session, ids: Sequence[int], end_rows: Callable[[Sequence[int]], int], tally: Tally) -> None:
    """End these rows, and if the database refuses one of them, the others."""
    try:
        with session.begin_nested():
            done = end_rows(ids)
    except DBAPIError as error:
        if not is_about_rows(error):
            raise
        if len(ids) == 1 or tally.broken >= MOST_ISOLATED:
            tally.add_broken(ids, error)
            return
        middle = len(ids) // 2
        end_batch(session, ids[:middle], end_rows, tally)
        end_batch(session, ids[middle:], end_rows, tally)
    else:
        tally.done += done
        tally.left += len(ids) - done


def is_about_rows(error: DBAPIError) -> bool:
    """Whether PostgreSQL refused what a row holds, rather than the statement, the user or the connection."""
    return str(getattr(error.orig, "pgcode", None) or "").startswith(ABOUT_ROWS)


def among(column: InstrumentedAttribute[int], ids: Sequence[int]) -> ColumnElement[bool]:
    """Whether ``column`` is one of ``ids``, as one parameter: thousands of them take SQLAlchemy long."""
    listed = literal("{" + ",".join(map(str, ids)) + "}", Text)
    return column == any_(cast(listed, ARRAY(BigInteger)))
