"""Chats that nobody writes in any more: when they time out, and ending them."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from core import Checkpoint
from plugins.customer_service.chats import ACTIVE, WHO_WENT_QUIET, end_locked
from plugins.customer_service.models import Chat

#: A chat with no activity for this long ends; at exactly this long, too (DOMAIN.md, section 1).
TIMEOUT = timedelta(minutes=2)


def end_quiet_chats(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = 100) -> int:
    """End every chat that has timed out, batch by batch, recording who went quiet; return how many.

    A chat whose row is locked is left to whoever holds it: a message is just arriving, or it is being ended.
    """
    ended = 0
    while chat_ids := _lock_quiet(session, now, batch):
        end_locked(session, chat_ids, now, WHO_WENT_QUIET)
        ended += len(chat_ids)
        checkpoint({"ended": ended})
    return ended


def _lock_quiet(session: Session, now: datetime, batch: int) -> Sequence[int]:
    quiet = (
        select(Chat.id)
        .where(ACTIVE, Chat.last_activity_at <= now - TIMEOUT)
        .order_by(Chat.last_activity_at, Chat.id)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(quiet).all()
