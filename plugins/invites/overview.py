"""What people look at: requests whose outcome is unknown, with the team that they concern."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from plugins.invites.models import Request, RequestState, Seat, Team


@dataclass(frozen=True)
class UnknownRequest:
    """A request that was sent, and whose outcome is not known yet. It has no address."""

    id: UUID
    kind: str
    team: str
    seat_id: int
    state: str
    attempts: int
    last_status: int | None
    changed_at: datetime


def unknown_requests(session: Session, limit: int = 1000) -> Sequence[UnknownRequest]:
    """Return the requests whose outcome is unknown, the oldest first."""
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
        .where(Request.state.in_([RequestState.SENT, RequestState.UNKNOWN]))
        .order_by(Request.changed_at)
        .limit(limit)
    )
    return [UnknownRequest(*row) for row in session.execute(rows)]
