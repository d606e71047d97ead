"""The steps of a request to the gateway, each in the caller's transaction. None of them waits for the network.

A step that was made already changes nothing, so each step may be repeated: after a crash, and when several sources tell
the same outcome (an answer, a webhook, the list of members).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from plugins.invites.models import (
    Move,
    MoveState,
    Request,
    RequestKind,
    RequestState,
    Seat,
    SeatState,
    Team,
    Waiting,
    WaitingState,
)
from plugins.invites.moves import new_seat_confirmed, new_seat_lost, old_seat_freed
from plugins.invites.pools import take_turn
from plugins.invites.removal import request_removal, withdraw
from plugins.invites.requests import OPEN, end_request
from plugins.invites.seats import free, lock_seat, set_state

#: The priority of a person who was given a seat that the gateway did not have.
FRONT = 9
#: A team without a seat at the gateway gives no seats for this long. By then, its members have been compared.
COMPARED_WITHIN = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Sending:
    """A request that must be sent to the gateway. ``attempts`` includes the present attempt."""

    request_id: UUID
    kind: RequestKind
    team_id: int
    gateway_ref: str
    seat_id: int
    email: str
    attempts: int


@dataclass(frozen=True, slots=True)
class _Found:
    """A locked request with its seat, and the move of the seat if one is under way."""

    request: Request
    seat: Seat
    move: Move | None

    @property
    def is_over(self) -> bool:
        return self.request.state not in OPEN

    @property
    def invites(self) -> bool:
        return self.request.kind == RequestKind.INVITE


def begin(session: Session, request_id: UUID, now: datetime) -> Sending | None:
    """Record that a request is being sent. Return None if nothing must be sent: the outcome is known, or the person
    of an invitation that had no effect was removed in the meantime.
    """
    found = _lock(session, request_id)
    if found is None or found.is_over or (found.request.state == RequestState.NEW and _withdraw(session, found, now)):
        return None
    request, seat = found.request, found.seat
    request.state, request.attempts = RequestState.SENT, request.attempts + 1
    request.sent_at = request.changed_at = now
    session.flush()
    if seat.state == SeatState.RESERVED:
        set_state(session, [seat.id], now, state=SeatState.INVITING)
    gateway_ref = session.scalars(select(Team.gateway_ref).where(Team.id == seat.team_id)).one()
    kind = RequestKind(request.kind)
    return Sending(request.id, kind, seat.team_id, gateway_ref, seat.id, seat.email, request.attempts)


def confirm(
    session: Session, request_id: UUID, now: datetime, *, status: int | None = None, is_member: bool = False
) -> bool:
    """Record that the gateway has carried out a request. Return False if its outcome was known.

    The state of an invited person's seat becomes ``invited``, or ``member`` with ``is_member``. The seat of a removed
    person is freed.
    """
    found = _lock(session, request_id)
    if found is None or found.is_over:
        return False
    end_request(session, found.request, RequestState.CONFIRMED, now, status=status, problem=None)
    if found.invites:
        _invited(session, found, now, SeatState.MEMBER if is_member else SeatState.INVITED)
    else:
        _free(session, found.seat, found.move, now)
    return True


def leave_unknown(session: Session, request_id: UUID, now: datetime, *, status: int | None = None) -> bool:
    """Record that a request may or may not have been carried out. Return False if its outcome was known."""
    found = _lock(session, request_id)
    if found is None or found.is_over:
        return False
    found.request.state, found.request.last_status, found.request.changed_at = RequestState.UNKNOWN, status, now
    session.flush()
    return True


def put_back(session: Session, request_id: UUID, now: datetime, *, status: int | None = None) -> bool:
    """Record that no attempt to send a request had an effect. Return False if nothing is to be sent any more.

    The seat of an invitation is freed if its person was removed in the meantime.
    """
    found = _lock(session, request_id)
    if found is None or found.is_over or _withdraw(session, found, now):
        return False
    found.request.state, found.request.last_status, found.request.changed_at = RequestState.NEW, status, now
    session.flush()
    return True


def refuse(session: Session, request_id: UUID, now: datetime, *, status: int | None, problem: str) -> bool:
    """Record that the gateway will not carry out a request. Return False if its outcome was known.

    The seat of a person who is not invited is freed. A person who cannot be removed keeps the seat in the state
    ``removing``, which is given to nobody. ``problem`` must not contain the address.
    """
    found = _lock(session, request_id)
    if found is None or found.is_over:
        return False
    end_request(session, found.request, RequestState.REFUSED, now, status=status, problem=problem)
    if found.invites:
        _free(session, found.seat, found.move, now)
    return True


def no_room(session: Session, request_id: UUID, now: datetime, *, status: int | None = None) -> bool:
    """Record that the team of a request has no seat at the gateway, although it has one here.

    The seat is freed, and its person waits before all others, unless the person was being removed or moved. The team
    gives no seats for 15 minutes. By then, its members should have been compared. Return False if the outcome was
    known.
    """
    pool = session.scalar(select(Seat.pool).join(Request, Request.seat_id == Seat.id).where(Request.id == request_id))
    if pool is None:
        return False
    take_turn(session, pool)
    found = _lock(session, request_id)
    if found is None or found.is_over or not found.invites:
        return False
    wants_seat = found.seat.state != SeatState.REMOVING and found.move is None
    problem = "the team has no free seat at the gateway"
    end_request(session, found.request, RequestState.REFUSED, now, status=status, problem=problem)
    _free(session, found.seat, found.move, now)
    _close(session, found.seat.team_id, now + COMPARED_WITHIN)
    if wants_seat:
        _wait_in_front(session, found.seat, now)
    return True


def member_joined(session: Session, seat_id: int, now: datetime) -> bool:
    """Record that an invited person has become a member. Return False if nothing changes."""
    seat, _ = lock_seat(session, seat_id)
    if seat.state != SeatState.INVITED:
        return False
    set_state(session, [seat.id], now, state=SeatState.MEMBER)
    return True


def lose(session: Session, seat_id: int, now: datetime) -> bool:
    """Free the seat of a person whom the gateway neither has as a member nor has invited. Return False if it is free.

    The caller has made sure that no request of the seat is open.
    """
    seat, move = lock_seat(session, seat_id)
    if seat.state == SeatState.FREED:
        return False
    _free(session, seat, move, now)
    return True


def _lock(session: Session, request_id: UUID) -> _Found | None:
    seat_id = session.scalar(select(Request.seat_id).where(Request.id == request_id))
    if seat_id is None:
        return None
    seat, move = lock_seat(session, seat_id)
    request = session.get_one(Request, request_id, populate_existing=True, with_for_update=True)
    return _Found(request, seat, move)


def _invited(session: Session, found: _Found, now: datetime, state: SeatState) -> None:
    if found.seat.state == SeatState.REMOVING:
        request_removal(session, found.seat, now)
        return
    set_state(session, [found.seat.id], now, state=state)
    move = found.move
    if move is not None and move.to_seat_id == found.seat.id and move.state == MoveState.INVITING:
        new_seat_confirmed(session, move, now)


def _withdraw(session: Session, found: _Found, now: datetime) -> bool:
    """End an invitation that had no effect, if its person was removed in the meantime. Return whether it was ended."""
    if not found.invites or found.seat.state != SeatState.REMOVING:
        return False
    withdraw(session, found.request, now)
    _free(session, found.seat, found.move, now)
    return True


def _free(session: Session, seat: Seat, move: Move | None, now: datetime) -> None:
    if seat.state == SeatState.FREED:
        return
    free(session, seat, now)
    if move is not None and move.to_seat_id == seat.id:
        new_seat_lost(session, move, now)
    elif move is not None:
        old_seat_freed(session, move, now)


def _close(session: Session, team_id: int, until: datetime) -> None:
    later = func.greatest(Team.closed_until, until)  # PostgreSQL's GREATEST ignores NULL
    session.execute(update(Team).where(Team.id == team_id).values(closed_until=later))


def _wait_in_front(session: Session, seat: Seat, now: datetime) -> None:
    in_line = (Waiting.pool == seat.pool) & (Waiting.email == seat.email) & (Waiting.state == WaitingState.WAITING)
    former = select(Waiting.id).where(in_line | (Waiting.seat_id == seat.id)).order_by(~in_line, Waiting.id.desc())
    waiting_id = session.scalars(former.limit(1)).first()
    if waiting_id is not None:
        again = {"state": WaitingState.WAITING, "seat_id": None, "priority": FRONT, "changed_at": now}
        session.execute(update(Waiting).where(Waiting.id == waiting_id).values(again))
        return
    days = None if seat.expires_at is None else max((seat.expires_at - now).days, 1)
    row = {"email": seat.email, "pool": seat.pool, "priority": FRONT, "days": days, "asked_at": now, "changed_at": now}
    session.execute(insert(Waiting).values(row))
