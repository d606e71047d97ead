"""A position in an index of times: a row's time and id. A sweep continues with the rows after this position.

The time is kept as text, since Python cannot represent every time of PostgreSQL, and the time is only passed back to
PostgreSQL.
"""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Text, cast, literal, true, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from core import Instant


class Place(NamedTuple):
    """A row, by its time and id."""

    id: int
    at: str


def columns(row_id: InstrumentedAttribute[int], at: InstrumentedAttribute[Any]) -> list[ColumnElement[Any]]:
    """Return the columns to select for a Place."""
    return [row_id.label("id"), cast(at, Text).label("at")]


def after(
    place: Place | None, row_id: InstrumentedAttribute[int], at: InstrumentedAttribute[Any]
) -> ColumnElement[bool]:
    """Return the condition that a row comes after ``place``, in the order of its time and then of its id."""
    if place is None:
        return true()
    return tuple_(at, row_id) > tuple_(cast(literal(place.at), Instant), literal(place.id))
