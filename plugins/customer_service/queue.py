"""The queue of users who wait for an agent. It is ordered by ``joined_at``, then by the entry's id."""

from datetime import datetime

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from plugins.customer_service.instants import at
from plugins.customer_service.models import EntryState, QueueEntry
from plugins.customer_service.triggers import trigger_assignment

IN_SERVICE = QueueEntry.state.in_([EntryState.WAITING, EntryState.ASSIGNED])
#: The predicate of the unique index ``customer_service_queue_entries_one_per_user``, as the index spells it.
ONE_PER_USER = text("state IN ('waiting', 'assigned')")


def join_queue(session: Session, user_id: str, now: datetime | None = None) -> QueueEntry:
    """Put the user at the end of the queue and trigger an assignment.

    If the user is waiting already, or is in an active chat, the existing entry is returned. A unique index ensures
    this, also between two sessions. If ``now`` is left out, it is the database's time. Raises NaiveTime.
    """
    joined_at = at(session, now)
    while True:
        entry = _add(session, user_id, joined_at) or _existing(session, user_id)
        if entry is not None:  # None if the entry was removed between the two statements
            return entry


def leave_queue(session: Session, user_id: str, now: datetime | None = None) -> bool:
    """Take a waiting user out of the queue. Return False if the user does not wait, or has just been given an agent.

    If ``now`` is left out, it is the database's time. Raises NaiveTime.
    """
    left = session.scalar(
        update(QueueEntry)
        .where(QueueEntry.user_id == user_id, QueueEntry.state == EntryState.WAITING)
        .values(state=EntryState.LEFT, left_at=at(session, now))
        .returning(QueueEntry.id)
    )
    return left is not None


def _add(session: Session, user_id: str, now: datetime) -> QueueEntry | None:
    added = session.scalar(
        insert(QueueEntry)
        .values(user_id=user_id, joined_at=now)
        .on_conflict_do_nothing(index_elements=[QueueEntry.user_id], index_where=ONE_PER_USER)
        .returning(QueueEntry)
    )
    if added is not None:
        trigger_assignment(session)
    return added


def _existing(session: Session, user_id: str) -> QueueEntry | None:
    # No lock is taken. If a long transaction of an application held a lock here, it would block the assignment of all
    # users.
    query = select(QueueEntry).where(QueueEntry.user_id == user_id, IN_SERVICE)
    return session.scalar(query.execution_options(populate_existing=True))
