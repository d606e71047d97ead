"""Gives the seats that have become free, one transaction for at most a thousand of them."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from core import Checkpoint, require_aware
from plugins.invites.giving import AT_ONCE, give_seats
from plugins.invites.models import Waiting, WaitingState

#: The longest wait for the turn of a pool, which an application may have. After that, the run fails and is tried again.
PATIENCE = timedelta(seconds=10)


def consume(
    session: Session, now: datetime, pool: str | None, *, checkpoint: Checkpoint, most: int = AT_ONCE
) -> dict[str, int]:
    """Give the free seats of a pool, or of all pools, to those who wait, in order. Return the number of seats.

    Raises NaiveTime.
    """
    require_aware(now=now)
    counts = {"given": 0}
    for each in waited_for(session) if pool is None else [pool]:
        given = most
        while given == most:
            session.execute(text(f"SET LOCAL lock_timeout = {PATIENCE // timedelta(milliseconds=1)}"))
            given = give_seats(session, each, now, most)
            counts["given"] += given
            checkpoint(counts)
    return counts


def waited_for(session: Session) -> Sequence[str]:
    """Return the pools for which people wait."""
    waiting = select(Waiting.pool).where(Waiting.state == WaitingState.WAITING).distinct()
    return session.scalars(waiting.order_by(Waiting.pool)).all()
