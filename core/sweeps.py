"""Sweeps: a plugin acts on many rows batch by batch, and a row that breaks a rule keeps no other from it.

**Batches.** Each is acted on in a savepoint and then committed by a checkpoint, so that its locks are short, and a run
that dies loses one batch. Batches come in an order in which each row is seen once, whatever became of those before it:
by keyset (``in_batches``), not by asking again for the first rows that are due.

**Refused rows.** A batch of which a row is refused is rolled back to its beginning and done in halves, until that row
is alone. It stays as it is, is counted, and is named in the log. However many there are, all others are done. In memory
are the rows of one batch.

**A row's fault** is what ``is_fault_of_row`` says, here and nowhere else: what PostgreSQL or Python cannot do with the
values of a row. Any other error ends the run, which loses the batch it happened in and is tried again.
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
#: Constraints that wait for the commit would refuse a whole batch there.
CHECK_NOW = text("SET CONSTRAINTS ALL IMMEDIATE")
#: Rows that one line of the log names.
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
    """Have ``act`` do every row of ``batches`` but those that are refused; return ``counts``.

    ``act`` is given rows, does something to them in ``session``, and returns what to add to ``counts``; it may be
    called again with some of them. ``checkpoint`` commits each batch. A row is whatever ``batches`` yields: an id, or a
    tuple that begins with one; ``table`` says of what in the log. The number of refused rows is added to the count
    named ``refused``.

    Raises whatever ``act`` raises that is not a row's fault.
    """
    counts.setdefault(refused, 0)
    for rows in batches:
        done, failed = isolate(session, rows, act, table=table)
        add(counts, done)
        counts[refused] += len(failed)
        checkpoint(counts)
    return counts


def in_batches(find: Callable[[Row | None], Sequence[Row]]) -> Iterator[Sequence[Row]]:
    """Batches as ``find`` has them: the first rows after the one it is given, in an order; first of all after None."""
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
    """Have ``act`` do these rows but those that are refused; return what it returned, added up, and the refused ones.

    The refused rows are named in the log. Nothing is committed. For sweeps that are not of ``sweep``'s shape.
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
    """Act on all these rows, or on none; return the fault that one of them has."""
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
    """Name refused rows in the log, for a person to look at; a row is an id, or a tuple that begins with one."""
    for first in range(0, len(rows), NAMED_AT_ONCE):
        named = rows[first : first + NAMED_AT_ONCE]
        ids = ", ".join(str(row[0] if isinstance(row, tuple | SelectedRow) else row) for row in named)
        emit(SweepRowsRefused(table, len(named), ids, why))


def is_fault_of_row(error: Exception) -> bool:
    """Whether ``error`` is about the values of a row, not about the statement, the rights, the connection or the run.

    PostgreSQL's class of the error says so; or it is an error of Python's about a value that it cannot hold or compute,
    such as a date after the year 9999.
    """
    if isinstance(error, DBAPIError):
        return str(getattr(error.orig, "pgcode", None) or "").startswith(FAULTS_OF_ROWS)
    return isinstance(error, ValueError | ArithmeticError)


def reason(error: Exception) -> str:
    """What is wrong with a row, in names and never in values: those may be anybody's."""
    if not isinstance(error, DBAPIError):
        *_, last = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    said = getattr(error.orig, "diag", None)
    where = [getattr(said, name, None) for name in ("constraint_name", "column_name")]
    raised = (getattr(said, "context", None) or "").partition("\n")[0]
    named = [name for name in where if name] or ([raised] if raised.startswith("PL/pgSQL function") else [])
    return " ".join([type(error.orig).__name__, *named])
