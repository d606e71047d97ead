"""Notifications: a row for each recipient, and a live push to recipients who are connected.

The push goes to the Redis channel ``customer_service:notifications:{user|agent}:{id}``, from which the application can
send it to its WebSockets. A push may be lost; the row is reliable.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import insert
from sqlalchemy.orm import Session

from core import publish
from plugins.customer_service.models import Notification, NotificationKind, Side


class News(NamedTuple):
    """A chat, and the news about it that both sides must get."""

    chat_id: int
    user_id: str
    agent_id: str
    #: The time at which the chat ended, or at which it will end if neither side writes.
    ends_at: datetime
    #: Further fields of the push.
    details: Mapping[str, str | None] = {}


class Recipient(NamedTuple):
    """One side of one chat."""

    news: News
    kind: Side
    id: str


def channel(kind: str, recipient_id: str) -> str:
    """Return the Redis channel of one user or agent."""
    return f"customer_service:notifications:{kind}:{recipient_id}"


def notify(session: Session, kind: NotificationKind, chats: Sequence[News], now: datetime) -> None:
    """Store a notification for both sides of each chat, and push it when ``session`` commits."""
    recipients = [
        Recipient(news, side, name)
        for news in chats
        for side, name in ((Side.USER, news.user_id), (Side.AGENT, news.agent_id))
    ]
    for recipient, notification_id in zip(recipients, _store(session, recipients, kind, now), strict=True):
        publish(session, channel(recipient.kind, recipient.id), _message(notification_id, recipient.news, kind))


def _store(session: Session, recipients: Sequence[Recipient], kind: NotificationKind, now: datetime) -> Sequence[int]:
    if not recipients:
        return []
    stored = insert(Notification).returning(Notification.id, sort_by_parameter_order=True)
    return session.scalars(stored, [_row(recipient, kind, now) for recipient in recipients]).all()


def _row(recipient: Recipient, kind: NotificationKind, now: datetime) -> dict[str, object]:
    return {
        "chat_id": recipient.news.chat_id,
        "recipient_kind": recipient.kind,
        "recipient_id": recipient.id,
        "kind": kind,
        "created_at": now,
        "ends_at": recipient.news.ends_at,
    }


def _message(notification_id: int, news: News, kind: NotificationKind) -> dict[str, object]:
    return {
        "id": notification_id,
        "kind": kind,
        "chat_id": news.chat_id,
        "ends_at": news.ends_at.isoformat(),
        **news.details,
    }
