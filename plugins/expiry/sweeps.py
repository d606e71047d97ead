"""The sweep of this plugin, which ends all due rows in batches. Each batch is one transaction.

**Slices and batches.** A slice is up to a million ids, read from the index of due rows. Its batches take these ids in
the order of the ids. Rows that end at the same time are usually spread over the whole table. If the batches took the
rows in the order of their ends, each batch would touch most pages of the table, and a large sweep would take twice as
long. Each slice begins after the end of the last slice. So the sweep does not read index entries of ended rows again,
and does not try rows again that could not be ended. A sweep keeps one slice of ids in memory, as text: about ten
megabytes at most, for a table of any size.

**Locked rows** are skipped, and counted as left. The next run finds them, if they are still due.

**Broken rows** are rows that the database refuses to end, and rows with unusable values, for example without an end.
The constraints refuse such values, but rows of an older system may have them. Broken rows stay unchanged and are
counted, and the log names them once per run; see ``core.sweep``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Text, any_, cast, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.orm import InstrumentedAttribute, Session

from core import Checkpoint, Instant, in_batches, report_refused, require_aware, sweep

#: The batches of each slice touch all pages of the table. With slices of a fifth of this size, a large sweep takes a
#: fifth longer (``benchmarks/coupons.py``).
SLICE = 1_000_000
#: At most this many rows with unusable values are read at a time.
UNFIT_AT_ONCE = 1000
UNFIT = "no end, or a negative number of points"


class Place(NamedTuple):
    """A position in the index of due rows. The time is PostgreSQL's text, since Python cannot represent every time."""

    at: str
    id: int


@dataclass(frozen=True, slots=True)
class Ends:
    """The rows of a table that end at a certain time. The conditions are those of the table's partial indexes."""

    table: str
    id: InstrumentedAttribute[int]
    at: InstrumentedAttribute[datetime]
    is_open: ColumnElement[bool]
    is_broken: ColumnElement[bool]

    def due(self, now: datetime) -> ColumnElement[bool]:
        """Return the condition that a row is open and its end is not in the future."""
        return self.is_open & (self.at <= now)


def end_due(
    session: Session,
    ends: Ends,
    now: datetime,
    end_rows: Callable[[Sequence[int]], dict[str, int]],
    *,
    counts: Sequence[str],
    checkpoint: Checkpoint,
    batch: int,
) -> dict[str, int]:
    """End all due rows of ``ends`` with ``end_rows``, ``batch`` at a time. Return the numbers of ended, skipped and
    broken rows.

    ``end_rows`` gets ids, locks those of these rows that are still due and not locked by other transactions, and ends
    them. Raises NaiveTime.
    """
    require_aware(now=now)
    found = {**dict.fromkeys(counts, 0), "left": 0, "broken": 0}
    for ids in in_batches(lambda last: unfit(session, ends, last)):
        found["broken"] += len(ids)
        report_refused(ends.table, ids, UNFIT)
    due = batches(session, ends, now, batch)
    return sweep(session, due, end_rows, table=ends.table, counts=found, checkpoint=checkpoint)


def unfit(session: Session, ends: Ends, after: int | None) -> Sequence[int]:
    """Return the next rows with unusable values."""
    broken = select(ends.id).where(ends.is_broken)
    if after is not None:
        broken = broken.where(ends.id > after)
    return session.scalars(broken.order_by(ends.id).limit(UNFIT_AT_ONCE)).all()


def batches(session: Session, ends: Ends, now: datetime, batch: int) -> Iterator[list[int]]:
    """Yield the ids of all rows that are due, ``batch`` at a time."""
    after: Place | None = None
    while found := read_slice(session, ends, now, batch, after):
        listed, after = found
        for ids in listed:
            yield [int(row_id) for row_id in ids.split(",")]


def read_slice(
    session: Session, ends: Ends, now: datetime, batch: int, after: Place | None
) -> tuple[list[str], Place] | None:
    """Return the ids of the next due rows, as a text for each batch, and the last row's place; None if there are no
    more.
    """
    onwards = ends.due(now)
    if after is not None:
        onwards &= tuple_(ends.at, ends.id) > tuple_(
            cast(literal(after.at, Text), Instant), literal(after.id, BigInteger)
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


def among(column: InstrumentedAttribute[int], ids: Sequence[int]) -> ColumnElement[bool]:
    """Return the condition that ``column`` is one of ``ids``.

    The ids are one array parameter, since SQLAlchemy is slow with thousands of parameters.
    """
    listed = literal("{" + ",".join(map(str, ids)) + "}", Text)
    return column == any_(cast(listed, ARRAY(BigInteger)))
