"""Assigns waiting users to agents, strictly oldest first, with any number of workers at once.

**Why batches take turns.** The usual solution is that each worker locks its own ten users with SKIP LOCKED. This never
assigns a user twice, but it does not keep the order when agents are scarce. While one worker has locked the ten oldest
users, another worker skips these users, locks the next ten, and assigns the last free agents to them. Then a user who
joined later is served, and a user who joined earlier is not. So a batch first takes *the turn*, an advisory lock that
ends with the batch's transaction. The batch that has the turn sees all changes of earlier batches (under READ
COMMITTED, PostgreSQL's default). It takes the oldest users and commits within milliseconds. Then the next batch gets
the turn; PostgreSQL keeps the waiting batches in order. A worker waits for the turn instead of giving up. So a trigger
is not lost if its run begins while another run is about to end. It would not be enough to wait for the oldest user's
row: after such a wait, a statement still uses its old snapshot, and would miss a user who joined meanwhile.

**Why rows are locked as well.** Users leave, chats end and agents go offline without the turn. So the batch also locks
the rows of its users and agents, and then sees their latest state.

**Which rows a batch waits for.** A batch waits only for the oldest user's row. A transaction in which this user leaves
may still roll back, and no other user may overtake this user. While the batch waits, it holds only the turn, which no
application takes, so the batch cannot be part of a deadlock. After the oldest user, it takes the next users up to the
first user whose row is locked by another transaction. It skips an agent whose row is locked, because the lock may last
long, and there are other agents.

**How long a batch waits.** If an application keeps a transaction open after ``leave_queue``, every run waits for that
transaction, and with ``overlap="allow"`` the number of waiting runs grows. So a batch waits for at most ``PATIENCE``.
Then its run fails and is tried again.

**Broken entries** are skipped and stay unchanged, and the log names them once per run: an entry whose user has an
active chat, an entry that already has a chat, an entry whose time is not a date, and an entry that the database refuses
to place. The other entries are placed in their order.

**Why ten agents are enough.** A batch of ten users needs only the ten best agents. Each assignment changes the rank of
one agent. So before each of the ten assignments, at least one of these ten agents has no new chat, and this agent ranks
before all agents outside the ten.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import count, takewhile
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
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

from core import Checkpoint, isolate, report_refused, require_aware
from plugins.customer_service.chats import ACTIVE
from plugins.customer_service.instants import is_a_date
from plugins.customer_service.models import Agent, Chat, EntryState, NotificationKind, QueueEntry
from plugins.customer_service.notifications import News, notify
from plugins.customer_service.places import active_chats
from plugins.customer_service.quiet import TIMEOUT
from plugins.customer_service.sweeps import UNSYNCHRONISED

#: The number of users in one batch, and so in one transaction.
BATCH = 10
#: The name of the turn among this database's advisory locks.
TURN = "customer_service.assignment"
#: The longest wait of a batch for any one lock. A batch itself takes milliseconds.
PATIENCE = timedelta(seconds=10)

WAITING = QueueEntry.state == EntryState.WAITING
IN_ORDER = (QueueEntry.joined_at, QueueEntry.id)


def has_chat(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return whether a chat with these conditions exists.

    With OFFSET, PostgreSQL looks up the chat by an index, and does not join the tables.
    """
    return exists(select(Chat.id).where(condition).offset(0).correlate(QueueEntry))


#: The conditions under which an entry cannot be placed, by their text in the log.
UNFIT = {
    "joined_at is no date": ~is_a_date(QueueEntry.joined_at),
    "the user has an active chat": has_chat((Chat.user_id == QueueEntry.user_id) & ACTIVE),
    "the entry has a chat": has_chat(Chat.queue_entry_id == QueueEntry.id),
}
AVAILABLE = Agent.is_online & (Agent.current_chats < Agent.capacity)
LOAD = cast(Agent.current_chats, Double) / func.nullif(Agent.capacity, 0)
#: The order of available agents. The id makes the order unique.
BEST_FIRST = (LOAD, Agent.rating.desc(), Agent.last_chat_id.asc().nulls_first(), Agent.id)


class Waiting(NamedTuple):
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
        """The value by which agents are sorted, in the same order as ``BEST_FIRST``."""
        return self.current_chats / self.capacity, -self.rating, self.last_turn, self.agent_id

    @property
    def has_room(self) -> bool:
        return self.current_chats < self.capacity


Placement = tuple[Waiting, Desk]


def assign_waiting_users(
    session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = BATCH
) -> dict[str, int]:
    """Assign waiting users to agents, batch by batch, until no user can be placed. Return the numbers of users and of
    broken entries.

    Raises NaiveTime.
    """
    require_aware(now=now)
    assigned, broken = 0, name_unfit_entries(session) if is_possible(session, set()) else set[int]()
    progress = True
    while progress and is_possible(session, broken):
        placed, refused = assign_batch_but(session, now, batch, broken)
        assigned, broken, progress = assigned + placed, broken | refused, bool(placed or refused)
        checkpoint({"assigned": assigned, "broken": len(broken)})
    return {"assigned": assigned, "broken": len(broken)}


def name_unfit_entries(session: Session) -> set[int]:
    """Log the waiting entries that cannot be placed. Return their ids."""
    named: set[int] = set()
    for why, unfit in UNFIT.items():
        ids = session.scalars(select(QueueEntry.id).where(WAITING, unfit).order_by(QueueEntry.id)).all()
        report_refused(QueueEntry.__tablename__, [entry_id for entry_id in ids if entry_id not in named], why)
        named.update(ids)
    return named


def is_possible(session: Session, broken: set[int]) -> bool:
    """Return whether a user is waiting with an entry that is not broken, and an agent has a free place.

    The check is made before the batch takes the turn, so that runs without work never wait.
    """
    somebody_waits = exists().where(WAITING, QueueEntry.id.not_in(broken))
    return bool(session.scalar(select(somebody_waits & exists().where(AVAILABLE))))


def assign_batch(session: Session, now: datetime, batch: int = BATCH) -> int:
    """Place the oldest waiting users, ``batch`` at most, in the transaction of ``session``.

    Return how many users were placed.
    """
    placed, _ = assign_batch_but(session, now, batch, set())
    return placed


def assign_batch_but(session: Session, now: datetime, batch: int, broken: set[int]) -> tuple[int, set[int]]:
    """Place users like ``assign_batch``, but skip the ``broken`` entries.

    Return how many users were placed, and the entries that the database has refused.

    Raises NaiveTime.
    """
    require_aware(now=now)
    _take_the_turn(session)
    waiting = _lock_the_oldest(session, batch, broken)
    first_left = len(waiting)

    def place(users: Sequence[Waiting]) -> dict[str, int]:
        nonlocal first_left
        first = waiting.index(users[0])
        if first > first_left:  # no user may overtake a user for whom there was no agent
            return {}
        placements = _place(users, _lock_the_best_agents(session, len(users)))
        if placements:
            _record(session, placements, now)
        first_left = first + len(placements) if len(placements) < len(users) else len(waiting)
        return {"assigned": len(placements)}

    placed, refused = isolate(session, waiting, place, table=QueueEntry.__tablename__)
    return placed.get("assigned", 0), {user.entry_id for user in refused}


def _take_the_turn(session: Session) -> None:
    session.execute(text(f"SET LOCAL lock_timeout = {PATIENCE // timedelta(milliseconds=1)}"))
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(TURN, 0))))


def _lock_the_oldest(session: Session, batch: int, broken: set[int]) -> list[Waiting]:
    oldest = (
        select(QueueEntry.id, QueueEntry.user_id, QueueEntry.joined_at)
        .where(WAITING, is_a_date(QueueEntry.joined_at), QueueEntry.id.not_in(broken))
        .order_by(*IN_ORDER)
    )
    session.execute(oldest.limit(1).with_for_update()).all()
    # These are separate statements, so they see users who joined during the wait for the oldest user.
    locked = session.execute(oldest.limit(batch).with_for_update(skip_locked=True)).all()
    all_of_them = session.scalars(oldest.with_only_columns(QueueEntry.id).limit(batch)).all()
    in_line = takewhile(lambda pair: pair[0].id == pair[1], zip(locked, all_of_them, strict=False))
    return [Waiting(*row) for row, _ in in_line]


def _lock_the_best_agents(session: Session, number: int) -> list[Desk]:
    best = select(Agent.id).where(AVAILABLE).order_by(*BEST_FIRST).limit(number)
    locked = session.scalars(best.with_for_update(key_share=True, skip_locked=True)).all()
    # This is a separate statement, so it sees all chats that existed when the agents were locked.
    taken = func.greatest(Agent.current_chats, active_chats())
    desks = select(Agent.id, taken, Agent.capacity, Agent.rating, func.coalesce(Agent.last_chat_id, 0))
    return [Desk(*row) for row in session.execute(desks.where(Agent.id.in_(locked)))]


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
    _tell_assigned(session, placements, chat_ids, now)


def _start_chats(session: Session, placements: Sequence[Placement], now: datetime) -> Sequence[int]:
    # Chats must get their ids in the order of the assignments, since Agent.last_chat_id depends on that order.
    started = insert(Chat).returning(Chat.id, sort_by_parameter_order=True)
    return session.scalars(started, [_chat(user, desk, now) for user, desk in placements]).all()


def _chat(user: Waiting, desk: Desk, now: datetime) -> dict[str, object]:
    started_at = _starts_at(user, now)
    return {
        "queue_entry_id": user.entry_id,
        "user_id": user.user_id,
        "agent_id": desk.agent_id,
        "started_at": started_at,
        "last_activity_at": started_at,
    }


def _starts_at(user: Waiting, now: datetime) -> datetime:
    # A run that waited for the turn may place a user who joined after the run's own time.
    return max(now, user.joined_at)


def _mark_assigned(session: Session, users: Sequence[Waiting], now: datetime) -> None:
    session.execute(
        update(QueueEntry)
        .where(QueueEntry.id.in_([user.entry_id for user in users]))
        .values(state=EntryState.ASSIGNED, assigned_at=func.greatest(now, QueueEntry.joined_at)),
        execution_options=UNSYNCHRONISED,
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
        .values(current_chats=Agent.current_chats + places.c.chats, last_chat_id=places.c.last_chat_id),
        execution_options=UNSYNCHRONISED,
    )


def _tell_assigned(session: Session, placements: Sequence[Placement], chat_ids: Sequence[int], now: datetime) -> None:
    news = [
        News(
            chat_id,
            user.user_id,
            desk.agent_id,
            _starts_at(user, now) + TIMEOUT,
            {"user_id": user.user_id, "agent_id": desk.agent_id},
        )
        for (user, desk), chat_id in zip(placements, chat_ids, strict=True)
    ]
    notify(session, NotificationKind.AGENT_ASSIGNED, news, now)
