"""Removes a person from a team. The seat is given to somebody else only when the gateway has confirmed the removal.

If the outcome of the invitation is still open, the removal is requested when the outcome is known. Otherwise the
gateway could carry out the removal first and the invitation afterwards.
"""

from datetime import datetime

from sqlalchemy.orm import Session

from plugins.invites.models import Request, RequestKind, RequestState, Seat, SeatState
from plugins.invites.requests import add_requests, end_request, open_request
from plugins.invites.seats import free, set_state

LIVE = (SeatState.RESERVED, SeatState.INVITING, SeatState.INVITED, SeatState.MEMBER)


def start_removal(session: Session, seat: Seat, now: datetime) -> bool:
    """Remove the person of a locked seat, which is in one of the states ``LIVE``. Return whether the seat is free at
    once, because the invitation was never sent.
    """
    invitation = open_request(session, seat.id, RequestKind.INVITE)
    if invitation is not None and invitation.state == RequestState.NEW:
        withdraw(session, invitation, now)
        free(session, seat, now)
        return True
    set_state(session, [seat.id], now, state=SeatState.REMOVING)
    if invitation is None:
        request_removal(session, seat, now)
    return False


def withdraw(session: Session, invitation: Request, now: datetime) -> None:
    """End a locked invitation that was not sent. The caller frees the seat."""
    problem = "the person was removed before it was sent"
    end_request(session, invitation, RequestState.REFUSED, now, status=None, problem=problem)


def request_removal(session: Session, seat: Seat, now: datetime) -> None:
    """Request the removal of the person of a locked seat, unless it has been requested."""
    if open_request(session, seat.id, RequestKind.REMOVE) is None:
        add_requests(session, RequestKind.REMOVE, [seat.id], now, priority=seat.priority)
