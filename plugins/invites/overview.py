"""What people look at: requests that are not settled, with the team that they concern."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from plugins.invites.models import Request, RequestKind, RequestState, Seat, SeatState, Team


@dataclass(frozen=True)
class UnknownRequest:
    """A request whose outcome is not known yet, or a removal that was refused. It has no address."""

    id: UUID
    kind: str
    team: str
    seat_id: int
    state: str
    attempts: int
    last_status: int | None
    changed_at: datetime


def unknown_requests(session: Session, limit: int = 1000) -> Sequence[UnknownRequest]:
    """Return the requests whose outcome is unknown, and the removals that the gateway has refused, the oldest first.

    The seat of a refused removal is given to nobody until the removal is requested again.
    """
    is_unknown = Request.state.in_([RequestState.SENT, RequestState.UNKNOWN])
    is_removal = (Request.kind == RequestKind.REMOVE) & (Seat.state == SeatState.REMOVING)
    is_refused = (Request.state == RequestState.REFUSED) & is_removal
    rows = (
        select(
            Request.id,
            Request.kind,
            Team.name,
            Request.seat_id,
            Request.state,
            Request.attempts,
            Request.last_status,
            Request.changed_at,
        )
        .join(Seat, Request.seat_id == Seat.id)
        .join(Team, Seat.team_id == Team.id)
        .where(is_unknown | is_refused)
        .order_by(Request.changed_at)
        .limit(limit)
    )
    return [UnknownRequest(*row) for row in session.execute(rows)]
