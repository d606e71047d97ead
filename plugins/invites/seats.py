"""Seats that are taken: found, locked, and freed. A seat is freed here and nowhere else."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from plugins.invites.errors import UnknownMember
from plugins.invites.models import Move, MoveState, Seat, SeatState, Team
from plugins.invites.pools import wake
from plugins.invites.teams import lock_teams

FRESH = {"populate_existing": True}
UNDER_WAY = Move.state.in_([MoveState.INVITING, MoveState.REMOVING])


def lock_seat(session: Session, seat_id: int) -> tuple[Seat, Move | None]:
    """Lock a seat, with its team and the other seat of a move. Return the seat as it is now, and the move if it is
    under way.

    The team of the old seat is locked together with the new seat, whose confirmation may free the old seat.
    """
    lock_teams_of(session, [seat_id])
    # This is a separate statement, and a move cannot begin while the team is locked.
    move = move_of(session, seat_id)
    ids = {seat_id} if move is None else {move.from_seat_id, move.to_seat_id}
    rows = select(Seat).where(Seat.id.in_(ids)).order_by(Seat.id).with_for_update()
    seats = {seat.id: seat for seat in session.scalars(rows, execution_options=FRESH)}
    # The other team's outcome may have ended the move during the wait for the seats.
    return seats[seat_id], None if move is None else move_of(session, seat_id)


def lock_teams_of(session: Session, seat_ids: Sequence[int]) -> None:
    """Lock the teams that ``lock_seat`` locks for these seats, so that the order is right for all of them."""
    old = select(Move.from_seat_id).where(Move.to_seat_id.in_(seat_ids), UNDER_WAY)
    of_seats = select(Seat.team_id).where(Seat.id.in_(seat_ids) | Seat.id.in_(old)).distinct()
    lock_teams(session, session.scalars(of_seats).all())


def move_of(session: Session, seat_id: int) -> Move | None:
    """Return the move from or to a seat that is under way, or None."""
    of_seat = or_(Move.from_seat_id == seat_id, Move.to_seat_id == seat_id)
    return session.scalars(select(Move).where(of_seat, UNDER_WAY), execution_options=FRESH).one_or_none()


def seat_of(session: Session, team: Team, email: str) -> Seat:
    """Return the seat that a person has in a team. Raises UnknownMember."""
    rows = select(Seat).where(Seat.team_id == team.id, Seat.email == email, Seat.state != SeatState.FREED)
    seat = session.scalars(rows, execution_options=FRESH).one_or_none()
    if seat is None:
        raise UnknownMember(team.name)
    return seat


def seat_in_pool(session: Session, pool: str, email: str) -> Seat | None:
    """Return the seat that a person has in a pool, or None. During a move it is the old seat."""
    rows = select(Seat).where(Seat.pool == pool, Seat.email == email, Seat.state != SeatState.FREED)
    return session.scalars(rows.order_by(Seat.is_target, Seat.id), execution_options=FRESH).first()


def set_state(session: Session, seat_ids: Iterable[int], now: datetime, **columns: object) -> None:
    """Change columns of locked seats."""
    changed = update(Seat).where(Seat.id.in_([*seat_ids])).values(**columns, changed_at=now)
    session.execute(changed, execution_options={"synchronize_session": "fetch"})


def free(session: Session, seat: Seat, now: datetime) -> None:
    """Free a locked seat, whose person the gateway does not have. Those who wait are given it at once."""
    set_state(session, [seat.id], now, state=SeatState.FREED, is_target=False)
    session.execute(update(Team).where(Team.id == seat.team_id).values(taken=Team.taken - 1))
    wake(session, [seat.pool])
