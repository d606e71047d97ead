"""Telling both sides of a quiet chat that it is about to time out, once per quiet spell.

The row decides: ``warned_at`` is set in the transaction that stores the notifications, and emptied by the next message.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Row, select, update
from sqlalchemy.orm import Session

from core import Checkpoint
from plugins.customer_service.chats import ACTIVE
from plugins.customer_service.models import Chat, Side
from plugins.customer_service.notifications import Recipient, notify
from plugins.customer_service.timeouts import TIMEOUT

#: How long before the time-out the warning is due (DOMAIN.md, section 1).
NOTICE = timedelta(minutes=1)
KIND = "timeout_warning"


def warn_quiet_chats(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = 100) -> int:
    """Warn both sides of every chat that has been quiet for a minute, batch by batch; return how many chats.

    A chat that has timed out already is not warned: it ends, and there is nothing left to do about it.
    """
    warned = 0
    while chat_ids := _lock_unwarned(session, now, batch):
        notify(session, _recipients(_mark_warned(session, chat_ids, now)), KIND, now)
        warned += len(chat_ids)
        checkpoint({"warned": warned})
    return warned


def _lock_unwarned(session: Session, now: datetime, batch: int) -> Sequence[int]:
    unwarned = (
        select(Chat.id)
        .where(ACTIVE, Chat.warned_at.is_(None))
        .where(Chat.last_activity_at <= now - (TIMEOUT - NOTICE), Chat.last_activity_at > now - TIMEOUT)
        .order_by(Chat.last_activity_at, Chat.id)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(unwarned).all()


def _mark_warned(session: Session, chat_ids: Sequence[int], now: datetime) -> Sequence[Row[int, str, str, datetime]]:
    warned = (
        update(Chat)
        .where(Chat.id.in_(chat_ids))
        .values(warned_at=now)
        .returning(Chat.id, Chat.user_id, Chat.agent_id, Chat.last_activity_at)
        .execution_options(synchronize_session=False)
    )
    return session.execute(warned).all()


def _recipients(chats: Sequence[Row[int, str, str, datetime]]) -> list[Recipient]:
    return [
        Recipient(chat.id, side, name, chat.last_activity_at + TIMEOUT)
        for chat in chats
        for side, name in ((Side.USER, chat.user_id), (Side.AGENT, chat.agent_id))
    ]
