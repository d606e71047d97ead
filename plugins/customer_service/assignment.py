"""Giving waiting users to agents, strictly oldest first, by any number of workers at once.

**Why batches take turns.** The usual recipe is that each worker locks its own ten users with SKIP LOCKED. It never
assigns a user twice, but it loses the order just when order matters: the worker that skipped past the ten oldest finds
the last free agents while the worker that holds the ten oldest is still looking, or rolls back; then a user who joined
later is served, and one who joined earlier is not. So a batch first takes *the turn*, an advisory lock that ends with
its transaction. Whoever has the turn sees everything earlier batches did (under READ COMMITTED, PostgreSQL's default),
takes the oldest users there are, and commits within milliseconds; the next in line follows, and PostgreSQL keeps that
line in order. A worker waits for the turn and never gives up on it, so a trigger cannot be lost between a run that is
about to end and one that just began. Waiting for the oldest user's row instead would nearly do, but whoever waits for a
row goes on with what it saw before it waited, and would overlook a user whose join was committed meanwhile.

**Why rows are locked as well.** Users leave, chats end and agents go offline without asking for the turn. The rows
decide those races: the batch locks its users and its agents, sees each in its latest state, and the others wait for it
or it for them. No SKIP LOCKED here: a user somebody is looking at is not to be overtaken.

**Why nobody waits in a circle.** Locks are taken in one order everywhere: the turn, chats, queue entries (oldest
first), agents (by id). Nobody who holds an agent's row asks for anything after it.

**Why nobody waits for ever.** An application that keeps a transaction open after ``end_chat`` would hold up every run,
and with ``overlap="allow"`` they would pile up. So waiting ends after ``PATIENCE``; the run fails and is tried again.

**Why ten agents are enough.** A batch of ten needs the ten best at most: each placing makes one agent's rank worse, so
until the tenth there is always one of the first ten left untouched, and it ranks before everyone outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import count

from sqlalchemy import (
    BigInteger,
    Double,
    Integer,
    Text,
    cast,
    column,
    exists,
    func,
    insert,
    select,
    text,
    update,
    values,
)
from sqlalchemy.orm import Session

from core import Checkpoint
from plugins.customer_service.models import Agent, Chat, EntryState, QueueEntry

#: Users in one batch, and so in one transaction (DOMAIN.md, section 1).
BATCH = 10
#: The name of the turn among this database's advisory locks.
TURN = "customer_service.assignment"
#: How long a batch waits for any one lock; a batch itself takes milliseconds.
PATIENCE = timedelta(seconds=10)

WAITING = QueueEntry.state == EntryState.WAITING
AVAILABLE = Agent.is_online & (Agent.current_chats < Agent.capacity)
LOAD = cast(Agent.current_chats, Double) / func.nullif(Agent.capacity, 0)
#: Whose turn it is among available agents; the id only makes the answer the same each time.
BEST_FIRST = (LOAD, Agent.rating.desc(), Agent.last_chat_id.asc().nulls_first(), Agent.id)


@dataclass(slots=True)
class Waiting:
    """A user at the head of the queue."""

    entry_id: int
    user_id: str
    joined_at: datetime


@dataclass(slots=True)
class Desk:
    """An available agent while a batch is being placed."""

    agent_id: str
    current_chats: int
    capacity: int
    rating: Decimal
    last_turn: int

    @property
    def rank(self) -> tuple[float, Decimal, int, str]:
        """The same order as ``BEST_FIRST``."""
        return self.current_chats / self.capacity, -self.rating, self.last_turn, self.agent_id

    @property
    def has_room(self) -> bool:
        return self.current_chats < self.capacity


Placement = tuple[Waiting, Desk]


def assign_waiting_users(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = BATCH) -> int:
    """Give waiting users to agents, batch by batch, until nobody can be placed; return how many were."""
    assigned = 0
    while is_possible(session):
        assigned += assign_batch(session, now, batch)
        checkpoint({"assigned": assigned})
    return assigned


def is_possible(session: Session) -> bool:
    """Whether somebody waits and an agent has room. Asked before the turn is, so that idle runs wait for nobody."""
    return bool(session.scalar(select(exists().where(WAITING) & exists().where(AVAILABLE))))


def assign_batch(session: Session, now: datetime, batch: int = BATCH) -> int:
    """Place the oldest waiting users, ``batch`` at most, in the transaction of ``session``; return how many."""
    _take_the_turn(session)
    waiting = _lock_the_oldest(session, batch)
    placements = _place(waiting, _lock_the_best_agents(session, len(waiting)))
    if placements:
        _record(session, placements, now)
    return len(placements)


def _take_the_turn(session: Session) -> None:
    session.execute(text(f"SET LOCAL lock_timeout = {PATIENCE // timedelta(milliseconds=1)}"))
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(TURN, 0))))


def _lock_the_oldest(session: Session, batch: int) -> list[Waiting]:
    oldest = (
        select(QueueEntry.id, QueueEntry.user_id, QueueEntry.joined_at)
        .where(WAITING)
        .order_by(QueueEntry.joined_at, QueueEntry.id)
        .limit(batch)
        .with_for_update()
    )
    return [Waiting(*row) for row in session.execute(oldest)]


def _lock_the_best_agents(session: Session, number: int) -> list[Desk]:
    best = select(Agent.id).where(AVAILABLE).order_by(*BEST_FIRST).limit(number)
    locked = (
        select(Agent.id, Agent.current_chats, Agent.capacity, Agent.rating, func.coalesce(Agent.last_chat_id, 0))
        .where(AVAILABLE, Agent.id.in_(best))
        .order_by(Agent.id)
        .with_for_update(key_share=True)
    )
    return [Desk(*row) for row in session.execute(locked)]


def _place(waiting: Sequence[Waiting], desks: Sequence[Desk]) -> list[Placement]:
    turns = count(1 + max((desk.last_turn for desk in desks), default=0))
    placements: list[Placement] = []
    for user in waiting:
        desk = min((desk for desk in desks if desk.has_room), key=lambda desk: desk.rank, default=None)
        if desk is None:
            break
        desk.current_chats += 1
        desk.last_turn = next(turns)
        placements.append((user, desk))
    return placements


def _record(session: Session, placements: Sequence[Placement], now: datetime) -> None:
    chat_ids = _start_chats(session, placements, now)
    _mark_assigned(session, [user for user, _ in placements], now)
    _take_places(session, placements, chat_ids)


def _start_chats(session: Session, placements: Sequence[Placement], now: datetime) -> Sequence[int]:
    # Sorted by parameter order, because chat ids grow in the order of assignment: Agent.last_chat_id relies on it.
    started = insert(Chat).returning(Chat.id, sort_by_parameter_order=True)
    return session.scalars(started, [_chat(user, desk, now) for user, desk in placements]).all()


def _chat(user: Waiting, desk: Desk, now: datetime) -> dict[str, object]:
    # A run that waited for its turn may place a user who joined after the run's own time.
    started_at = max(now, user.joined_at)
    return {
        "queue_entry_id": user.entry_id,
        "user_id": user.user_id,
        "agent_id": desk.agent_id,
        "started_at": started_at,
        "last_activity_at": started_at,
    }


def _mark_assigned(session: Session, users: Sequence[Waiting], now: datetime) -> None:
    session.execute(
        update(QueueEntry)
        .where(QueueEntry.id.in_([user.entry_id for user in users]))
        .values(state=EntryState.ASSIGNED, assigned_at=func.greatest(now, QueueEntry.joined_at))
        .execution_options(synchronize_session=False)
    )


def _take_places(session: Session, placements: Sequence[Placement], chat_ids: Sequence[int]) -> None:
    chats: dict[str, list[int]] = {}
    for (_, desk), chat_id in zip(placements, chat_ids, strict=True):
        chats.setdefault(desk.agent_id, []).append(chat_id)
    taken = values(column("agent_id", Text), column("chats", Integer), column("last_chat_id", BigInteger), name="taken")
    places = taken.data([(agent_id, len(ids), max(ids)) for agent_id, ids in chats.items()])
    session.execute(
        update(Agent)
        .where(Agent.id == places.c.agent_id)
        .values(current_chats=Agent.current_chats + places.c.chats, last_chat_id=places.c.last_chat_id)
        .execution_options(synchronize_session=False)
    )
