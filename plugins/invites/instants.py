"""The time of a call: that of the caller, or that of the database, since the clocks of applications differ."""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import Instant, require_aware


def at(session: Session, now: datetime | None) -> datetime:
    """Return ``now``, or the database's time if ``now`` is None. Raises NaiveTime for a ``now`` without a time zone."""
    if now is None:
        return session.scalars(select(func.clock_timestamp(type_=Instant))).one()
    require_aware(now=now)
    return now
