"""The archive: chats that have been inactive for long move there with their messages, and leave the live tables.

What was only about the live chat, its queue entry and its notifications, is removed.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import DateTime, delete, insert, literal, select
from sqlalchemy.orm import Session

from core import Checkpoint
from plugins.customer_service.chats import WHO_WENT_QUIET, end_locked
from plugins.customer_service.models import (
    ArchivedChat,
    ArchivedMessage,
    Chat,
    ChatState,
    EntryState,
    Message,
    Notification,
    QueueEntry,
)

#: A chat inactive for this long is archived; at exactly this long, too (DOMAIN.md, section 1).
KEPT = timedelta(days=30)

UNSYNCHRONISED = {"synchronize_session": False}
#: What the archive takes over as it is, by column.
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
    """Archive and remove every chat inactive for 30 days, batch by batch; count those archived and ended.

    One that is still active is ended first, as any chat is, so that its agent's place is free again.
    """
    counts = {"archived": 0, "ended": 0}
    while chats := _lock_inactive(session, now, batch):
        counts["ended"] += _end_active(session, chats, now)
        counts["archived"] += _move(session, list(chats), now)
        checkpoint(counts)
    return counts


def remove_left_entries(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = 1000) -> int:
    """Remove the queue entries of users who left 30 days ago without a chat, batch by batch; return how many."""
    removed = 0
    while entry_ids := _lock_left(session, now, batch):
        session.execute(delete(QueueEntry).where(QueueEntry.id.in_(entry_ids)), execution_options=UNSYNCHRONISED)
        removed += len(entry_ids)
        checkpoint({"left_entries_removed": removed})
    return removed


def _lock_inactive(session: Session, now: datetime, batch: int) -> dict[int, str]:
    inactive = (
        select(Chat.id, Chat.state)
        .where(Chat.last_activity_at <= now - KEPT)
        .order_by(Chat.last_activity_at, Chat.id)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    return dict(session.execute(inactive).all())


def _end_active(session: Session, chats: dict[int, str], now: datetime) -> int:
    active = [chat_id for chat_id, state in chats.items() if state == ChatState.ACTIVE]
    if active:
        end_locked(session, active, now, WHO_WENT_QUIET)
    return len(active)


def _move(session: Session, chat_ids: Sequence[int], now: datetime) -> int:
    _copy_chats(session, chat_ids, now)
    _copy_messages(session, chat_ids)
    _remove(session, chat_ids)
    return len(chat_ids)


def _copy_chats(session: Session, chat_ids: Sequence[int], now: datetime) -> None:
    chats = (
        select(*CHAT_KEPT.values(), QueueEntry.joined_at, literal(now, DateTime(timezone=True)))
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


def _lock_left(session: Session, now: datetime, batch: int) -> Sequence[int]:
    left = (
        select(QueueEntry.id)
        .where(QueueEntry.state == EntryState.LEFT, QueueEntry.left_at <= now - KEPT)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(left).all()
