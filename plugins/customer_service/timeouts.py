"""Ends chats that timed out: records which side did not answer, and notifies both sides."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from core import Checkpoint, require_aware
from plugins.customer_service.chats import Ended, end_locked, lock_to_end
from plugins.customer_service.models import Chat, NotificationKind
from plugins.customer_service.notifications import News, notify
from plugins.customer_service.places import count_again
from plugins.customer_service.quiet import TIMEOUT, has_timed_out, is_to_be_warned, name_unfit_chats, quiet_for
from plugins.customer_service.sweeps import in_order, sweep
from plugins.customer_service.timeout_warnings import warn

__all__ = ["TIMEOUT", "end_quiet_chats", "tell_ended"]


def end_quiet_chats(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = 100) -> dict[str, int]:
    """End every chat that has timed out, batch by batch, and record which side did not answer. Return the counts.

    A chat is skipped if its row or its agent's row is locked: a message is arriving, or the chat is being ended. A chat
    that was never warned is warned instead, so that a later run ends it even if the warning job fails. Before that,
    wrong counts of agents' chats are corrected, and the log names these agents. Raises NaiveTime.
    """
    require_aware(now=now)
    counts = {"ended": 0, "warned": 0, "left": 0, "broken": count_again(session) + name_unfit_chats(session)}
    due = has_timed_out(now)

    def end_batch(ids: Sequence[int], held: set[int]) -> dict[str, int]:
        locked = lock_to_end(session, ids, due)
        held |= {*ids} - {*locked}
        tell_ended(session, end_locked(session, locked, now), now)
        return {"ended": len(locked)}

    chats = in_order(session, due, Chat.last_activity_at, Chat.id, batch)
    sweep(session, chats, end_batch, table=Chat.__tablename__, counts=counts, checkpoint=checkpoint)
    unwarned = is_to_be_warned(now) & quiet_for(TIMEOUT, now)
    warn(session, unwarned, now, counts=counts, checkpoint=checkpoint, batch=batch)
    return counts


def tell_ended(session: Session, chats: Sequence[Ended], now: datetime) -> None:
    """Tell both sides of each chat that it has timed out."""
    news = [News(chat.id, chat.user_id, chat.agent_id, now, {"end_reason": chat.end_reason}) for chat in chats]
    notify(session, NotificationKind.CHAT_TIMED_OUT, news, now)
