"""The sweep of this plugin: processes rows batch by batch, and skips locked rows and broken rows.

**A sweep never waits for a row.** A sweep holds many rows at a time. If it waited for a row, the transaction that holds
this row might be waiting for a row of the sweep: a deadlock. So a sweep skips locked rows, and tries them again after
the others, as long as each pass processes some of them. If a pass processes none, the sweep repeats it after short
pauses, in which it holds no rows. Rows that are still locked after that are counted as ``left``, and the next run finds
them. If several sweeps run at once, the last sweep processes the rows that the others held.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, literal, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from core import Checkpoint, Instant, in_batches, isolate, report_refused

#: At most this many rows with unusable values are read at a time.
UNFIT_AT_ONCE = 1000
#: The waits after passes that find all their rows locked: the wait after the first such pass, after the second, and so
#: on.
PAUSES_SECONDS = (0.05, 0.15, 0.3)
UNSYNCHRONISED = {"synchronize_session": False}

#: Acts on the rows with these ids, adds locked rows to the set, and returns the numbers to count.
Act = Callable[[Sequence[int], set[int]], Mapping[str, int]]


def sweep(
    session: Session,
    batches: Iterable[Sequence[int]],
    act: Act,
    *,
    table: str,
    counts: dict[str, int],
    checkpoint: Checkpoint,
) -> None:
    """Call ``act`` with all rows, except those that are locked or refused.

    Adds the result of ``act`` to ``counts``, the number of locked rows to "left", and the number of refused rows to
    "broken".
    """
    left, fruitless = counts["left"], 0
    while batches:
        progress, held = False, set[int]()
        for ids in batches:
            progress |= _do(session, ids, act, held, table, counts)
            counts["left"] = left + len(held)
            checkpoint(counts)
        fruitless = 0 if progress else fruitless + 1
        if not held or fruitless > len(PAUSES_SECONDS):
            return
        if fruitless:
            time.sleep(PAUSES_SECONDS[fruitless - 1])
        batches = [sorted(held)]


def _do(session: Session, ids: Sequence[int], act: Act, held: set[int], table: str, counts: dict[str, int]) -> bool:
    def attempt(part: Sequence[int]) -> Mapping[str, int]:
        held.difference_update(part)
        return act(part, held)

    done, refused = isolate(session, ids, attempt, table=table)
    held.difference_update(refused)
    counts["broken"] += len(refused)
    for name, number in done.items():
        counts[name] += number
    return any(done.values())


def in_order(
    session: Session,
    due: ColumnElement[bool],
    at: InstrumentedAttribute[Any],
    row_id: InstrumentedAttribute[int],
    batch: int,
) -> Iterator[Sequence[int]]:
    """Yield the ids of the rows that are ``due`` in the order of ``at``, up to ``batch`` at a time.

    Each id is yielded once.
    """

    def find(last: Row[int, datetime] | None) -> Sequence[Row[int, datetime]]:
        rows = select(row_id, at).where(due)
        if last is not None:
            rows = rows.where(tuple_(at, row_id) > tuple_(literal(last[1], Instant), last[0]))
        return session.execute(rows.order_by(at, row_id).limit(batch)).all()

    for rows in in_batches(find):
        yield [row[0] for row in rows]


def name_unfit(session: Session, unfit: ColumnElement[bool], row_id: InstrumentedAttribute[int], why: str) -> int:
    """Log the rows whose values no sweep can read. Return their number."""

    def find(last: int | None) -> Sequence[int]:
        rows = select(row_id).where(unfit) if last is None else select(row_id).where(unfit, row_id > last)
        return session.scalars(rows.order_by(row_id).limit(UNFIT_AT_ONCE)).all()

    named = 0
    for ids in in_batches(find):
        report_refused(row_id.class_.__tablename__, ids, why)
        named += len(ids)
    return named
