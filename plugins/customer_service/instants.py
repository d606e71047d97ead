"""Times: the database's clock, and the times of PostgreSQL that Python can calculate with.

Applications run on many hosts, whose clocks differ. So the order of users and the time-outs of chats use one clock,
that of the database, unless the caller passes a time.
"""

from datetime import UTC, datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core import Instant, require_aware

#: PostgreSQL also has times outside of this range, up to ``infinity``. Python cannot represent them.
EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)


def at(session: Session, now: datetime | None) -> datetime:
    """Return ``now``, or the database's time if ``now`` is None. Raises NaiveTime for a ``now`` without a time zone."""
    if now is None:
        return session.scalars(select(func.clock_timestamp(type_=Instant))).one()
    require_aware(now=now)
    return now


def is_a_date(column: InstrumentedAttribute[datetime] | InstrumentedAttribute[datetime | None]) -> ColumnElement[bool]:
    """Return whether Python can hold the time and calculate with it."""
    return column.between(EARLIEST, LATEST)
