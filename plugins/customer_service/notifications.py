"""Notifications: a row for everyone told, and a live push to those who are connected.

The push goes to the Redis channel ``customer_service:notifications:{user|agent}:{id}``, from where the application's
WebSocket passes it on. It is best effort; the row is what counts.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import insert
from sqlalchemy.orm import Session

from core import publish
from plugins.customer_service.models import Notification, Side


class Recipient(NamedTuple):
    """One side of one chat, and when that chat ends unless somebody writes."""

    chat_id: int
    kind: Side
    id: str
    ends_at: datetime


def channel(kind: str, recipient_id: str) -> str:
    """The Redis channel of one user or agent."""
    return f"customer_service:notifications:{kind}:{recipient_id}"


def notify(session: Session, recipients: Sequence[Recipient], kind: str, now: datetime) -> None:
    """Store a notification for each recipient, and push it live once ``session`` commits."""
    for recipient, notification_id in zip(recipients, _store(session, recipients, kind, now), strict=True):
        publish(session, channel(recipient.kind, recipient.id), _message(notification_id, recipient, kind))


def _store(session: Session, recipients: Sequence[Recipient], kind: str, now: datetime) -> Sequence[int]:
    stored = insert(Notification).returning(Notification.id, sort_by_parameter_order=True)
    return session.scalars(stored, [_row(recipient, kind, now) for recipient in recipients]).all()


def _row(recipient: Recipient, kind: str, now: datetime) -> dict[str, object]:
    return {
        "chat_id": recipient.chat_id,
        "recipient_kind": recipient.kind,
        "recipient_id": recipient.id,
        "kind": kind,
        "created_at": now,
        "ends_at": recipient.ends_at,
    }


def _message(notification_id: int, recipient: Recipient, kind: str) -> dict[str, object]:
    return {
        "id": notification_id,
        "kind": kind,
        "chat_id": recipient.chat_id,
        "ends_at": recipient.ends_at.isoformat(),
    }
