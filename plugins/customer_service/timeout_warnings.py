"""Warns both sides of a quiet chat that it is about to time out, once per quiet period.

The row decides whether a warning is sent: ``warned_at`` is set in the transaction that stores the notifications, and
the next message empties it.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from core import Checkpoint, Instant, require_aware
from plugins.customer_service.models import Chat, NotificationKind
from plugins.customer_service.notifications import News, notify
from plugins.customer_service.quiet import NOTICE, TIMEOUT, is_to_be_warned, name_unfit_chats
from plugins.customer_service.sweeps import UNSYNCHRONISED, in_order, sweep

BATCH = 100


def warn_quiet_chats(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = BATCH) -> dict[str, int]:
    """Warn both sides of every chat that has been quiet for a minute, batch by batch. Return the counts.

    A chat that should have timed out already is also warned, and ends a minute after the warning. Raises NaiveTime.
    """
    require_aware(now=now)
    counts = {"warned": 0, "left": 0, "broken": name_unfit_chats(session)}
    warn(session, is_to_be_warned(now), now, counts=counts, checkpoint=checkpoint, batch=batch)
    return counts


def warn(
    session: Session,
    due: ColumnElement[bool],
    now: datetime,
    *,
    counts: dict[str, int],
    checkpoint: Checkpoint,
    batch: int,
) -> None:
    """Warn the chats that are ``due``. Add their number to ``counts``."""

    def warn_batch(ids: Sequence[int], held: set[int]) -> dict[str, int]:
        locked = session.scalars(select(Chat.id).where(Chat.id.in_(ids), due).with_for_update(skip_locked=True)).all()
        held |= {*ids} - {*locked}
        notify(session, NotificationKind.TIMEOUT_WARNING, _mark_warned(session, locked, now), now)
        return {"warned": len(locked)}

    chats = in_order(session, due, Chat.last_activity_at, Chat.id, batch)
    sweep(session, chats, warn_batch, table=Chat.__tablename__, counts=counts, checkpoint=checkpoint)


def _mark_warned(session: Session, chat_ids: Sequence[int], now: datetime) -> list[News]:
    ends_at = func.greatest(Chat.last_activity_at + TIMEOUT, now + NOTICE, type_=Instant)
    warned = (
        update(Chat)
        .where(Chat.id.in_(chat_ids))
        .values(warned_at=now)
        .returning(Chat.id, Chat.user_id, Chat.agent_id, ends_at)
    )
    return [News(*row) for row in session.execute(warned, execution_options=UNSYNCHRONISED)]
