"""Doing something to a batch of rows so that one row which cannot be done does not keep the others from it."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.exc import DataError, IntegrityError, InternalError
from sqlalchemy.orm import Session

log = logging.getLogger(__name__)

#: What a row can be guilty of: values that do not compute, a constraint, a trigger that refuses. Whatever else goes
#: wrong concerns the database or the run, and ends it.
FAULTS_OF_ROWS = (DataError, IntegrityError, InternalError)


def apply(session: Session, ids: Sequence[Any], do: Callable[[Sequence[Any]], object], *, noun: str) -> int:
    """Call ``do`` with ``ids``; if the database refuses, with each half of them, down to single rows.

    Each call has a savepoint. Return how many rows were refused in the end; each is logged with its id.
    """
    if not ids:
        return 0
    try:
        with session.begin_nested():
            do(ids)
    except FAULTS_OF_ROWS as error:
        if len(ids) > 1:
            middle = len(ids) // 2
            return sum(apply(session, half, do, noun=noun) for half in (ids[:middle], ids[middle:]))
        log.warning("sweep.row_refused %s=%s reason=%s", noun, ids[0], type(error.orig).__name__)
        return 1
    return 0
