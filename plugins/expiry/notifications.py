"""Notifications: a row for each recipient, and a live push to recipients who are connected.

The push goes to the Redis channel ``expiry:notifications:{owner_id}``, from which the application can send it to its
WebSockets. A push may be lost; the row is reliable.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import insert
from sqlalchemy.orm import Session

from core import publish
from plugins.expiry.models import CancelReason, Notification

TASK_CANCELLED = "task_cancelled"


def channel(owner_id: str) -> str:
    """Return the Redis channel of one owner."""
    return f"expiry:notifications:{owner_id}"


def notify_cancelled(session: Session, tasks: Sequence[tuple[int, str]], now: datetime) -> None:
    """Tell the owner of each (task, owner) that the task's deadline has passed.

    The notifications are pushed when ``session`` commits.
    """
    if not tasks:
        return
    stored = insert(Notification).returning(Notification.id, sort_by_parameter_order=True)
    ids = session.scalars(stored, [_row(task_id, owner_id, now) for task_id, owner_id in tasks]).all()
    for notification_id, (task_id, owner_id) in zip(ids, tasks, strict=True):
        publish(session, channel(owner_id), _message(notification_id, task_id, now))


def _row(task_id: int, owner_id: str, now: datetime) -> dict[str, object]:
    return {"task_id": task_id, "owner_id": owner_id, "kind": TASK_CANCELLED, "created_at": now}


def _message(notification_id: int, task_id: int, now: datetime) -> dict[str, object]:
    return {
        "id": notification_id,
        "kind": TASK_CANCELLED,
        "task_id": task_id,
        "reason": CancelReason.DEADLINE_PASSED,
        "cancelled_at": now.isoformat(),
    }
