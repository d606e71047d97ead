"""What applications do with the members of teams: remove them, and give them more time."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from plugins.invites.addresses import normalize
from plugins.invites.errors import BadValue, MoveUnderWay, UnknownMember
from plugins.invites.instants import at
from plugins.invites.models import RequestKind, Seat, SeatState
from plugins.invites.removal import LIVE, request_removal, start_removal
from plugins.invites.requests import open_request
from plugins.invites.seats import lock_seat, seat_of, set_state
from plugins.invites.teams import find_team


def remove_member(session: Session, team: str, email: str, now: datetime | None = None) -> bool:
    """Remove a person from a team. The seat is free when the gateway has confirmed it. Return False if the removal has
    begun already.

    A removal that the gateway has refused is requested again, also that of the old seat of a move. Raises BadAddress,
    UnknownTeam, UnknownMember, or MoveUnderWay.
    """
    address, when = normalize(email), at(session, now)
    seat = _lock_member(session, team, address)
    if seat.state != SeatState.REMOVING:
        start_removal(session, seat, when)
        return True
    if any(open_request(session, seat.id, kind) for kind in RequestKind):
        return False
    request_removal(session, seat, when)
    return True


def extend(session: Session, team: str, email: str, by: timedelta, now: datetime | None = None) -> datetime | None:
    """Let a person keep a seat longer: from its end, or from now if that is later. Return the new end.

    A seat without an end has none afterwards either. Raises BadAddress, BadValue, UnknownTeam, UnknownMember or
    MoveUnderWay.
    """
    address, when = normalize(email), at(session, now)
    if not timedelta(0) < by <= timedelta(days=36_500):
        raise BadValue("by", by, "a span up to 100 years")
    seat = _lock_member(session, team, address)
    if seat.state not in LIVE:
        raise UnknownMember(team)
    if seat.expires_at is None:
        return None
    end = max(seat.expires_at, when) + by
    set_state(session, [seat.id], when, expires_at=end)
    return end


def _lock_member(session: Session, team: str, address: str) -> Seat:
    seat, move = lock_seat(session, seat_of(session, find_team(session, team), address).id)
    if seat.state == SeatState.FREED:  # while this transaction waited for the lock
        raise UnknownMember(team)
    if move is not None and seat.state != SeatState.REMOVING:
        raise MoveUnderWay
    return seat
