"""Gives free seats to the people who wait, in order. Every path to a seat of a pool leads through ``give_seats``.

A request enters the waiting list first, and seats are given afterwards. So a person who asks while other people wait
cannot overtake these people, however the seats become free. A person whose seat of the pool is being removed waits
until it is freed, and the others do not wait for this.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import BigInteger, ColumnElement, column, exists, insert, select, update, values
from sqlalchemy.orm import Session

from plugins.invites.models import RequestKind, Seat, SeatState, Team, TeamState, Waiting, WaitingState
from plugins.invites.pools import take_turn, wake
from plugins.invites.requests import add_requests

#: One call gives at most this many seats, so that its transaction stays short. A job gives the others.
AT_ONCE = 1000
UNSYNCHRONISED = {"synchronize_session": False}


class Asker(NamedTuple):
    """A person at the head of the waiting list."""

    waiting_id: int
    email: str
    priority: int
    days: int | None


def give_seats(session: Session, pool: str, now: datetime, most: int = AT_ONCE) -> int:
    """Give the free seats of a pool to the first who wait, and request their invitations. Return how many were given.

    If there are more than ``most``, a job gives the others.
    """
    take_turn(session, pool)
    rooms = lock_rooms(session, pool, now)
    askers = first_waiting(session, pool, min(most, sum(free for _, free in rooms)))
    given, left = 0, list(askers)
    for team_id, free in rooms:
        mine, left = left[:free], left[free:]
        if mine:
            _reserve(session, pool, team_id, mine, now)
            given += len(mine)
    if given == most:
        wake(session, [pool])
    return given


def lock_rooms(session: Session, pool: str, now: datetime) -> list[tuple[int, int]]:
    """Lock the open teams of a pool that have free seats. Return their ids with the number of free seats."""
    has_room = (Team.pool == pool) & is_open(now) & (Team.taken < Team.seats)
    rows = select(Team.id, Team.seats - Team.taken).where(has_room).order_by(Team.id).with_for_update()
    return [(team_id, free) for team_id, free in session.execute(rows)]


def is_open(now: datetime) -> ColumnElement[bool]:
    """Return the condition that a team takes people in."""
    return (Team.state == TeamState.OPEN) & (Team.closed_until.is_(None) | (Team.closed_until <= now))


def first_waiting(session: Session, pool: str, most: int) -> Sequence[Asker]:
    """Return the first people who wait for a seat of a pool and have none."""
    if not most:
        return []
    has_seat = exists().where(Seat.pool == pool, Seat.email == Waiting.email, Seat.state != SeatState.FREED)
    waiting = (
        select(Waiting.id, Waiting.email, Waiting.priority, Waiting.days)
        .where(Waiting.pool == pool, Waiting.state == WaitingState.WAITING, ~has_seat)
        .order_by(Waiting.priority.desc(), Waiting.id)
        .limit(most)
    )
    return [Asker(*row) for row in session.execute(waiting)]


def _reserve(session: Session, pool: str, team_id: int, askers: Sequence[Asker], now: datetime) -> None:
    """Give a seat of a locked team to each person."""
    taken = update(Team).where(Team.id == team_id).values(taken=Team.taken + len(askers))
    session.execute(taken, execution_options=UNSYNCHRONISED)
    added = insert(Seat).returning(Seat.id, sort_by_parameter_order=True)
    seat_ids = session.scalars(added, [_seat(pool, team_id, asker, now) for asker in askers]).all()
    _mark_placed(session, [asker.waiting_id for asker in askers], seat_ids, now)
    for priority in {asker.priority for asker in askers}:
        chosen = [seat for seat, asker in zip(seat_ids, askers, strict=True) if asker.priority == priority]
        add_requests(session, RequestKind.INVITE, chosen, now, priority=priority)


def _seat(pool: str, team_id: int, asker: Asker, now: datetime) -> dict[str, object]:
    return {
        "pool": pool,
        "team_id": team_id,
        "email": asker.email,
        "priority": asker.priority,
        "expires_at": None if asker.days is None else now + timedelta(days=asker.days),
        "created_at": now,
        "changed_at": now,
    }


def _mark_placed(session: Session, waiting_ids: Sequence[int], seat_ids: Sequence[int], now: datetime) -> None:
    pairs = values(column("waiting_id", BigInteger), column("seat_id", BigInteger), name="placed")
    placed = pairs.data(list(zip(waiting_ids, seat_ids, strict=True)))
    session.execute(
        update(Waiting)
        .where(Waiting.id == placed.c.waiting_id)
        .values(state=WaitingState.PLACED, seat_id=placed.c.seat_id, changed_at=now),
        execution_options=UNSYNCHRONISED,
    )
