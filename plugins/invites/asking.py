"""The waiting list of a pool. People ask for a seat, leave the list, and look up the state of their request."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.orm import Session

from plugins.invites.addresses import normalize
from plugins.invites.instants import at
from plugins.invites.models import Seat, SeatState, Team, Waiting, WaitingState
from plugins.invites.pools import take_turn

#: People who ask themselves get seats before people of a batch.
OF_PEOPLE, OF_BATCHES = 5, 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What has become of a person's wish for a seat.

    ``state`` is ``seat``, ``waiting``, ``left`` if the person gave up, or ``over`` if the person no longer has the
    seat. ``team`` is the name of the team of the seat. ``ahead`` is the number of people who wait before this person.
    """

    state: str
    team: str | None = None
    seat_id: int | None = None
    ahead: int | None = None


def leave_waiting(session: Session, email: str, pool: str, now: datetime | None = None) -> bool:
    """Give up a person's wish for a seat of a pool. Return False if the person does not wait. Raises BadAddress."""
    address, when = normalize(email), at(session, now)
    take_turn(session, pool)
    left = (
        update(Waiting)
        .where(Waiting.pool == pool, Waiting.email == address, Waiting.state == WaitingState.WAITING)
        .values(state=WaitingState.LEFT, changed_at=when)
        .returning(Waiting.id)
    )
    return session.scalar(left) is not None


def ask(session: Session, email: str, pool: str, *, priority: int, days: int | None, now: datetime) -> int:
    """Put a person at the end of the waiting list of a pool. The caller has the turn. Return the id of the row.

    If the person is waiting already, the row stays, with the larger of the two priorities.
    """
    waiting = select(Waiting.id).where(
        Waiting.pool == pool, Waiting.email == email, Waiting.state == WaitingState.WAITING
    )
    known = session.scalar(waiting)
    if known is not None:
        larger = {"priority": func.greatest(Waiting.priority, priority), "days": days, "changed_at": now}
        session.execute(update(Waiting).where(Waiting.id == known).values(larger))
        return known
    row = {"email": email, "pool": pool, "priority": priority, "days": days, "asked_at": now, "changed_at": now}
    return session.scalars(insert(Waiting).values(row).returning(Waiting.id)).one()


def answer(session: Session, waiting_id: int) -> Answer:
    """Return what has become of the wish with this id."""
    row = session.get_one(Waiting, waiting_id, populate_existing=True)
    if row.state == WaitingState.WAITING:
        return Answer("waiting", ahead=ahead_of(session, row))
    if row.state == WaitingState.LEFT or row.seat_id is None:
        return Answer("left")
    return answer_of_seat(session, session.get_one(Seat, row.seat_id, populate_existing=True))


def answer_of_seat(session: Session, seat: Seat) -> Answer:
    """Return the answer to a person who has been given this seat."""
    team = session.scalar(select(Team.name).where(Team.id == seat.team_id))
    is_over = seat.state in (SeatState.REMOVING, SeatState.FREED)
    return Answer("over" if is_over else "seat", team, seat.id)


def ahead_of(session: Session, row: Waiting) -> int:
    """Return how many people wait before this row."""
    before = or_(Waiting.priority > row.priority, and_(Waiting.priority == row.priority, Waiting.id < row.id))
    waiting = (Waiting.pool == row.pool, Waiting.state == WaitingState.WAITING, before)
    return session.scalars(select(func.count()).where(*waiting)).one()


def list_waiting(session: Session, pool: str | None = None, limit: int = 1000) -> Sequence[Waiting]:
    """Return those who wait, by pool, in the order in which they will get seats."""
    rows = select(Waiting).where(Waiting.state == WaitingState.WAITING)
    if pool is not None:
        rows = rows.where(Waiting.pool == pool)
    return session.scalars(rows.order_by(Waiting.pool, Waiting.priority.desc(), Waiting.id).limit(limit)).all()
