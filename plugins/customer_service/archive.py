"""The archive: moves long inactive chats with their messages from the live tables to the archive.

The queue entries and notifications of these chats are deleted.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, insert, literal, select
from sqlalchemy.orm import Session

from core import Checkpoint, Instant, require_aware
from plugins.customer_service.chats import end_locked, lock_to_end
from plugins.customer_service.instants import is_a_date
from plugins.customer_service.models import (
    ArchivedChat,
    ArchivedMessage,
    Chat,
    EntryState,
    Message,
    Notification,
    QueueEntry,
)
from plugins.customer_service.sweeps import UNSYNCHRONISED, in_order, name_unfit, sweep
from plugins.customer_service.timeouts import tell_ended

#: A chat is archived when it has been inactive for this long.
KEPT = timedelta(days=30)

UNFIT_CHAT = ~is_a_date(Chat.last_activity_at)
LEFT = QueueEntry.state == EntryState.LEFT
UNFIT_ENTRY = LEFT & (QueueEntry.left_at.is_(None) | ~is_a_date(QueueEntry.left_at))
#: The columns that the archive copies unchanged.
CHAT_KEPT = {
    "id": Chat.id,
    "user_id": Chat.user_id,
    "agent_id": Chat.agent_id,
    "started_at": Chat.started_at,
    "last_activity_at": Chat.last_activity_at,
    "last_sender": Chat.last_sender,
    "ended_at": Chat.ended_at,
    "end_reason": Chat.end_reason,
}
MESSAGE_KEPT = {
    "id": Message.id,
    "chat_id": Message.chat_id,
    "sender": Message.sender,
    "text": Message.text,
    "sent_at": Message.sent_at,
}


def archive_inactive_chats(
    session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = 500
) -> dict[str, int]:
    """Move all chats that were inactive for 30 days to the archive, in batches. Return the numbers of archived chats
    and of ended chats.

    A chat that is still active is ended before it is moved, so that its agent has a free place again. Raises NaiveTime.
    """
    require_aware(now=now)
    broken = name_unfit(session, UNFIT_CHAT, Chat.id, "last_activity_at is no date")
    counts = {"archived": 0, "ended": 0, "left": 0, "broken": broken}
    due = is_a_date(Chat.last_activity_at) & (Chat.last_activity_at <= now - KEPT)

    def archive_batch(ids: Sequence[int], held: set[int]) -> dict[str, int]:
        locked = lock_to_end(session, ids, due)
        held |= {*ids} - {*locked}
        ended = end_locked(session, locked, now)
        tell_ended(session, ended, now)
        _move(session, locked, now)
        return {"archived": len(locked), "ended": len(ended)}

    chats = in_order(session, due, Chat.last_activity_at, Chat.id, batch)
    sweep(session, chats, archive_batch, table=Chat.__tablename__, counts=counts, checkpoint=checkpoint)
    return counts


def remove_left_entries(
    session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = 1000
) -> dict[str, int]:
    """Remove the queue entries of users who left 30 days ago without a chat, batch by batch. Return the counts.

    Raises NaiveTime.
    """
    require_aware(now=now)
    broken = name_unfit(session, UNFIT_ENTRY, QueueEntry.id, "left_at is no date")
    counts = {"removed": 0, "left": 0, "broken": broken}
    due = LEFT & is_a_date(QueueEntry.left_at) & (QueueEntry.left_at <= now - KEPT)

    def remove_batch(ids: Sequence[int], held: set[int]) -> dict[str, int]:
        entries = select(QueueEntry.id).where(QueueEntry.id.in_(ids), due)
        locked = session.scalars(entries.with_for_update(skip_locked=True)).all()
        held |= {*ids} - {*locked}
        session.execute(delete(QueueEntry).where(QueueEntry.id.in_(locked)), execution_options=UNSYNCHRONISED)
        return {"removed": len(locked)}

    entries = in_order(session, due, QueueEntry.left_at, QueueEntry.id, batch)
    sweep(session, entries, remove_batch, table=QueueEntry.__tablename__, counts=counts, checkpoint=checkpoint)
    return counts


def _move(session: Session, chat_ids: Sequence[int], now: datetime) -> None:
    _copy_chats(session, chat_ids, now)
    _copy_messages(session, chat_ids)
    _remove(session, chat_ids)


def _copy_chats(session: Session, chat_ids: Sequence[int], now: datetime) -> None:
    chats = (
        select(*CHAT_KEPT.values(), QueueEntry.joined_at, literal(now, Instant))
        .join(QueueEntry, QueueEntry.id == Chat.queue_entry_id)
        .where(Chat.id.in_(chat_ids))
    )
    session.execute(insert(ArchivedChat).from_select([*CHAT_KEPT, "joined_at", "archived_at"], chats))


def _copy_messages(session: Session, chat_ids: Sequence[int]) -> None:
    messages = select(*MESSAGE_KEPT.values()).where(Message.chat_id.in_(chat_ids))
    session.execute(insert(ArchivedMessage).from_select([*MESSAGE_KEPT], messages))


def _remove(session: Session, chat_ids: Sequence[int]) -> None:
    session.execute(delete(Message).where(Message.chat_id.in_(chat_ids)), execution_options=UNSYNCHRONISED)
    session.execute(delete(Notification).where(Notification.chat_id.in_(chat_ids)), execution_options=UNSYNCHRONISED)
    gone = delete(Chat).where(Chat.id.in_(chat_ids)).returning(Chat.queue_entry_id)
    entry_ids = session.scalars(gone, execution_options=UNSYNCHRONISED).all()
    session.execute(delete(QueueEntry).where(QueueEntry.id.in_(entry_ids)), execution_options=UNSYNCHRONISED)
