"""Moves a person to another team in steps, so that the person has a seat at every moment.

1. ``move_member`` reserves the new seat and requests the invitation. The person has both seats.
2. When the gateway has confirmed the invitation, the removal from the old team is requested.
3. When the gateway has confirmed the removal, the old seat is freed, and the move is done.

Each step is one transaction, which changes the move's row too, so after a crash the move goes on where it stopped. If
the new team refuses the person, or somebody cancels the move before the invitation is sent, the new seat is freed, and
the person keeps the old seat.
"""

from datetime import datetime

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from plugins.invites.addresses import normalize
from plugins.invites.errors import AlreadyThere, MoveUnderWay, TeamClosed, TeamFull, UnknownMember
from plugins.invites.giving import first_waiting, is_open
from plugins.invites.instants import at
from plugins.invites.models import (
    Move,
    MoveState,
    RequestKind,
    RequestState,
    Seat,
    SeatState,
    Team,
    Waiting,
    WaitingState,
)
from plugins.invites.pools import take_turn
from plugins.invites.removal import LIVE, start_removal, withdraw
from plugins.invites.requests import add_requests, open_request
from plugins.invites.seats import free, lock_seat, move_of, seat_of, set_state
from plugins.invites.teams import find_team, lock_teams


def move_member(session: Session, email: str, from_team: str, to_team: str, now: datetime | None = None) -> int:
    """Move a person to another team, in which a seat must be free. Nobody may wait for it, unless the move stays within
    the pool. Return the id of the move.

    The new seat has the end of the old seat. Raises BadAddress, UnknownTeam, UnknownMember, TeamFull, TeamClosed,
    AlreadyThere or MoveUnderWay.
    """
    address, when = normalize(email), at(session, now)
    old_team, new_team = find_team(session, from_team), find_team(session, to_team)
    take_turn(session, old_team.pool, new_team.pool)
    lock_teams(session, [old_team.id, new_team.id])
    old = lock_seat(session, seat_of(session, old_team, address).id)[0]
    _check(session, old, old_team, new_team, when)
    new_id = _reserve(session, old, new_team, when)
    return _record(session, old, new_id, when)


def cancel_move(session: Session, email: str, from_team: str, now: datetime | None = None) -> bool:
    """End a person's move from a team before the invitation is sent. The person keeps the old seat.

    Return False if the person is not moving. Raises BadAddress, UnknownTeam, UnknownMember, or MoveUnderWay if the
    invitation has been sent, since it may have had its effect.
    """
    address, when = normalize(email), at(session, now)
    old = seat_of(session, find_team(session, from_team), address)
    begun = move_of(session, old.id)
    if begun is None or begun.from_seat_id != old.id:
        return False
    move = lock_seat(session, begun.to_seat_id)[1]
    if move is None or move.from_seat_id != old.id:  # it has ended while this transaction waited for the lock
        return False
    if not end_unsent(session, move, when):
        raise MoveUnderWay
    return True


def end_unsent(session: Session, move: Move, now: datetime) -> bool:
    """End a move whose invitation was not sent. The caller has locked the new seat. Return False if it was sent."""
    invitation = open_request(session, move.to_seat_id, RequestKind.INVITE)
    if invitation is None or invitation.state != RequestState.NEW:
        return False
    withdraw(session, invitation, now)
    free(session, session.get_one(Seat, move.to_seat_id), now)
    new_seat_lost(session, move, now)
    return True


def new_seat_confirmed(session: Session, move: Move, now: datetime) -> None:
    """Go on with a move whose new seat the gateway has confirmed: request the removal from the old team.

    From now on, the new seat is the answer to the person's wish for a seat.
    """
    old = session.get_one(Seat, move.from_seat_id)
    asked = update(Waiting).where(Waiting.seat_id == old.id).values(seat_id=move.to_seat_id, changed_at=now)
    session.execute(asked)
    _set_state(session, move, MoveState.REMOVING, now)
    if old.state in LIVE and start_removal(session, old, now):
        old_seat_freed(session, move, now)


def new_seat_lost(session: Session, move: Move, now: datetime) -> None:
    """End a move whose new seat has been freed. The person keeps the old seat."""
    _set_state(session, move, MoveState.FAILED, now)


def old_seat_freed(session: Session, move: Move, now: datetime) -> None:
    """End a move whose old seat has been freed. The new seat is now the person's only seat."""
    set_state(session, [move.to_seat_id], now, is_target=False)
    _set_state(session, move, MoveState.DONE, now)


def _check(session: Session, old: Seat, old_team: Team, new_team: Team, now: datetime) -> None:
    if move_of(session, old.id) is not None:
        raise MoveUnderWay
    if old.state not in LIVE:
        raise UnknownMember(old_team.name)
    others = select(func.count()).where(
        Seat.pool == new_team.pool, Seat.email == old.email, Seat.state != SeatState.FREED, Seat.id != old.id
    )
    if old_team.id == new_team.id or session.scalar(others):
        raise AlreadyThere(new_team.name)
    if not session.scalar(select(is_open(now)).where(Team.id == new_team.id)):
        raise TeamClosed(new_team.name)
    if new_team.taken >= new_team.seats or _others_are_first(session, old, new_team):
        raise TeamFull(new_team.name)


def _others_are_first(session: Session, old: Seat, new_team: Team) -> bool:
    """Return whether others wait for the new seat. A move within a pool takes no seat from them."""
    return old.pool != new_team.pool and any(
        asker.email != old.email for asker in first_waiting(session, new_team.pool, 1)
    )


def _reserve(session: Session, old: Seat, team: Team, now: datetime) -> int:
    session.execute(update(Team).where(Team.id == team.id).values(taken=Team.taken + 1))
    seat = insert(Seat).values(
        team_id=team.id,
        pool=team.pool,
        email=old.email,
        is_target=True,
        priority=old.priority,
        expires_at=old.expires_at,
        created_at=now,
        changed_at=now,
    )
    seat_id = session.scalars(seat.returning(Seat.id)).one()
    in_line = (Waiting.pool == team.pool, Waiting.email == old.email, Waiting.state == WaitingState.WAITING)
    placed = {"state": WaitingState.PLACED, "seat_id": seat_id, "changed_at": now}
    session.execute(update(Waiting).where(*in_line).values(placed))
    add_requests(session, RequestKind.INVITE, [seat_id], now, priority=old.priority)
    return seat_id


def _record(session: Session, old: Seat, new_id: int, now: datetime) -> int:
    move = insert(Move).values(from_seat_id=old.id, to_seat_id=new_id, created_at=now, changed_at=now)
    return session.scalars(move.returning(Move.id)).one()


def _set_state(session: Session, move: Move, state: MoveState, now: datetime) -> None:
    move.state, move.changed_at = state, now
    session.flush()
