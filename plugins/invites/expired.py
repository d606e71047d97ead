"""Removes the members whose time is up. A move ends if its invitation was not sent yet. Another member who is moving
keeps both seats until the move has ended.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from core import Checkpoint, in_batches, require_aware, sweep
from plugins.invites.models import Seat
from plugins.invites.moves import end_unsent
from plugins.invites.removal import LIVE, start_removal
from plugins.invites.seats import lock_seat, lock_teams_of

#: The teams of a batch are locked until it is committed, so batches are small.
BATCH = 100


def remove_expired(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = BATCH) -> dict[str, int]:
    """Start the removal of each member whose seat has ended, batch by batch. Return how many, and how many are moving.

    Raises NaiveTime.
    """
    require_aware(now=now)
    is_due = Seat.state.in_(LIVE) & (Seat.expires_at <= now)

    def find(last: int | None) -> Sequence[int]:
        due = select(Seat.id).where(is_due, Seat.id > (last or 0))
        return session.scalars(due.order_by(Seat.id).limit(batch)).all()

    def act(ids: Sequence[int]) -> dict[str, int]:
        lock_teams_of(session, ids)
        done = [_remove(session, seat_id, now) for seat_id in ids]
        return {name: done.count(name) for name in ("removing", "moving")}

    counts = {"removing": 0, "moving": 0}
    return sweep(session, in_batches(find), act, table=Seat.__tablename__, counts=counts, checkpoint=checkpoint)


def _remove(session: Session, seat_id: int, now: datetime) -> str:
    """Remove the person of a seat, unless something has changed since the seat was found. Return what was done."""
    seat, move = lock_seat(session, seat_id)
    if seat.state not in LIVE or seat.expires_at is None or seat.expires_at > now:
        return "changed"
    if move is not None and seat.id == move.to_seat_id and end_unsent(session, move, now):
        seat = session.get_one(Seat, move.from_seat_id)  # it has the same end
    elif move is not None:
        return "moving"
    start_removal(session, seat, now)
    return "removing"
