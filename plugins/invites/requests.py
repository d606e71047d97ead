"""Requests to the gateway: made in the transaction that needs them, and sent by the job ``process-invite``."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from core import enqueue_many
from plugins.invites.models import Request, RequestKind, RequestState, Seat

PROCESS = "process-invite"
#: The outcome of a request in these states is open.
OPEN = (RequestState.NEW, RequestState.SENT, RequestState.UNKNOWN)


def add_requests(session: Session, kind: RequestKind, seat_ids: Sequence[int], now: datetime, *, priority: int) -> None:
    """Add a request for each seat, and request runs that send them when ``session`` commits."""
    rows = [{"kind": kind, "seat_id": seat_id, "created_at": now, "changed_at": now} for seat_id in seat_ids]
    added = insert(Request).returning(Request.id, Request.seat_id, sort_by_parameter_order=True)
    made = session.execute(added, rows).all()
    of_seats = session.execute(select(Seat.id, Seat.team_id).where(Seat.id.in_(seat_ids)))
    teams = {row.id: row.team_id for row in of_seats}
    args = [{"request_id": str(request.id), "team_id": teams[request.seat_id]} for request in made]
    enqueue_many(session, PROCESS, args, keys=[str(request.id) for request in made], priority=priority)


def open_request(session: Session, seat_id: int, kind: RequestKind) -> Request | None:
    """Lock the request of a seat whose outcome is open, and return it, or None if there is none."""
    rows = select(Request).where(Request.seat_id == seat_id, Request.kind == kind, Request.state.in_(OPEN))
    return session.scalars(rows.with_for_update(), execution_options={"populate_existing": True}).one_or_none()


def end_request(
    session: Session, request: Request, state: RequestState, now: datetime, *, status: int | None, problem: str | None
) -> None:
    """Record the outcome of a locked request."""
    values = {"state": state, "last_status": status, "problem": problem, "changed_at": now}
    session.execute(update(Request).where(Request.id == request.id).values(values))
