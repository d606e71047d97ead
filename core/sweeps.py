"""Sweeps change many rows of a plugin batch by batch. A row that violates a constraint does not stop the other rows.

**Batches.** Each batch runs in a savepoint and is then committed by a checkpoint, so that locks are short, and a run
that dies loses one batch. Batches are read by keyset (``in_batches``), so that each row is read once, even if the rows
before it were refused.

**Refused rows.** If a row of a batch is refused, the batch is rolled back to its savepoint and repeated in halves,
until that row is alone. The row stays unchanged, is counted, and is named in the log. All other rows are processed,
even if many are refused. Memory holds the rows of one batch.

**A row's fault** is an error for which ``is_fault_of_row`` is true: PostgreSQL or Python cannot use the values of the
row. Any other error ends the attempt, which loses the current batch and is tried again.
"""

import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Row as SelectedRow
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core.observability.events import SweepRowsRefused, emit

Row = TypeVar("Row")

#: PostgreSQL's classes of errors that are about the values of a row: cardinality, data, constraints, a trigger's own
#: constraint, a view's check option, a value too large to be indexed, RAISE (PostgreSQL, appendix A).
FAULTS_OF_ROWS = ("21", "22", "23", "27", "44", "54", "P0")
#: Deferred constraints would refuse the whole batch at the commit.
CHECK_NOW = text("SET CONSTRAINTS ALL IMMEDIATE")
#: One line of the log names at most this many rows.
NAMED_AT_ONCE = 100


def sweep(
    session: Session,
    batches: Iterable[Sequence[Row]],
    act: Callable[[Sequence[Row]], Mapping[str, int]],
    *,
    table: str,
    counts: dict[str, int],
    checkpoint: Callable[[Mapping[str, Any]], None],
    refused: str = "broken",
) -> dict[str, int]:
    """Call ``act`` with all rows of ``batches`` except refused rows. Return ``counts``.

    ``act`` changes the rows that it is given in ``session``, and returns the numbers to add to ``counts``. It may be
    called again with some of the same rows. ``checkpoint`` commits each batch. A row is an id, or a tuple that begins
    with an id. ``table`` is the table's name in the log. The number of refused rows is added to the count that
    ``refused`` names.

    Raises every error of ``act`` that is not a row's fault.
    """
    counts.setdefault(refused, 0)
    for rows in batches:
        done, failed = isolate(session, rows, act, table=table)
        add(counts, done)
        counts[refused] += len(failed)
        checkpoint(counts)
    return counts


def in_batches(find: Callable[[Row | None], Sequence[Row]]) -> Iterator[Sequence[Row]]:
    """Yield batches of rows until there are no more rows.

    ``find(row)`` must return the batch of rows that follow ``row`` in a fixed order. ``find(None)`` must return the
    first batch.
    """
    last: Row | None = None
    while rows := find(last):
        last = rows[-1]
        yield rows


def add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    """Add ``more`` to ``counts``, name by name."""
    for name, number in more.items():
        counts[name] = counts.get(name, 0) + number


def isolate(
    session: Session, rows: Sequence[Row], act: Callable[[Sequence[Row]], Mapping[str, int]], *, table: str
) -> tuple[dict[str, int], list[Row]]:
    """Call ``act`` with all of ``rows`` except refused rows. Return the sums of the counts that ``act`` has returned,
    and the refused rows.

    The refused rows are named in the log. Nothing is committed. Use this function where ``sweep`` does not fit.
    """
    done: Counter[str] = Counter()
    refused: dict[str, list[Row]] = defaultdict(list)
    waiting = [rows] if rows else []
    while waiting:
        part = waiting.pop()
        fault = _attempt(session, part, act, done)
        if fault is not None and len(part) == 1:
            refused[reason(fault)].append(part[0])
        elif fault is not None:
            middle = len(part) // 2
            waiting += [part[middle:], part[:middle]]
    for why, failed in refused.items():
        report_refused(table, failed, why)
    return dict(done), [row for failed in refused.values() for row in failed]


def _attempt(
    session: Session, rows: Sequence[Row], act: Callable[[Sequence[Row]], Mapping[str, int]], done: Counter[str]
) -> Exception | None:
    """Call ``act`` with these rows. If a row causes an error, undo the changes of all rows, and return the error."""
    try:
        with session.begin_nested():
            counted = act(rows)
            session.flush()
            session.execute(CHECK_NOW)
    except (DBAPIError, ValueError, ArithmeticError) as error:
        if is_fault_of_row(error):
            return error
        raise
    done.update(counted)
    return None


def report_refused(table: str, rows: Sequence[Any], why: str) -> None:
    """Name refused rows in the log, for a person to look at. A row is an id, or a tuple that begins with an id."""
    for first in range(0, len(rows), NAMED_AT_ONCE):
        named = rows[first : first + NAMED_AT_ONCE]
        ids = ", ".join(str(row[0] if isinstance(row, tuple | SelectedRow) else row) for row in named)
        emit(SweepRowsRefused(table, len(named), ids, why))


def is_fault_of_row(error: Exception) -> bool:
    """Return whether ``error`` is about the values of a row, not about the statement, the rights, the connection or the
    run.

    An error of PostgreSQL is about a row if its class says so. An error of Python is about a row if Python cannot hold
    or compute a value, such as a date after the year 9999.
    """
    if isinstance(error, DBAPIError):
        return str(getattr(error.orig, "pgcode", None) or "").startswith(FAULTS_OF_ROWS)
    return isinstance(error, ValueError | ArithmeticError)


def reason(error: Exception) -> str:
    """Return the problem with a row, without the row's values, which may be personal data."""
    if not isinstance(error, DBAPIError):
        *_, last = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    said = getattr(error.orig, "diag", None)
    where = [getattr(said, name, None) for name in ("constraint_name", "column_name")]
    raised = (getattr(said, "context", None) or "").partition("\n")[0]
    named = [name for name in where if name] or ([raised] if raised.startswith("PL/pgSQL function") else [])
    return " ".join([type(error.orig).__name__, *named])
