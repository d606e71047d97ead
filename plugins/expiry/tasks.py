"""Tasks: each is open until it is completed or cancelled. The sweep cancels a task when its deadline has passed.

A deadline passes *at* ``deadline_at``: from this instant on the task is due to be cancelled. Until a sweep cancels it,
the task is open and may be completed. Completing and cancelling each change the row only if the other has not.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from core import Checkpoint
from plugins.expiry.errors import UnknownTask
from plugins.expiry.instants import require_to_come
from plugins.expiry.models import CancelReason, Task, TaskState
from plugins.expiry.notifications import notify_cancelled
from plugins.expiry.sweeps import Ends, among, end_due

#: The number of tasks in one batch. A notification is stored and published for each task.
BATCH = 500

OPEN = Task.state == TaskState.OPEN
ENDS = Ends(Task.__tablename__, Task.id, Task.deadline_at, OPEN, OPEN & Task.deadline_at.is_(None))


def open_task(session: Session, owner_id: str, deadline_at: datetime, now: datetime) -> int:
    """Open a task. Return its id. Raises BadInstant if ``deadline_at`` has passed."""
    require_to_come("deadline_at", deadline_at, now)
    task = insert(Task).values(owner_id=owner_id, opened_at=now, deadline_at=deadline_at).returning(Task.id)
    return session.scalars(task).one()


def complete_task(session: Session, task_id: int, now: datetime) -> bool:
    """Complete an open task. Return False if it was completed or cancelled already. Raises UnknownTask."""
    return _close(session, task_id, state=TaskState.COMPLETED, completed_at=now)


def cancel_task(session: Session, task_id: int, now: datetime) -> bool:
    """Cancel an open task, without a notification. Return False if it is not open any more. Raises UnknownTask."""
    reason = CancelReason.WITHDRAWN
    return _close(session, task_id, state=TaskState.CANCELLED, cancelled_at=now, cancel_reason=reason)


def cancel_expired(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = BATCH) -> dict[str, int]:
    """Cancel every open task whose deadline is not after ``now``, and notify each owner once, batch by batch.

    Return the number of cancelled tasks.
    """

    def cancel_batch(ids: Sequence[int]) -> dict[str, int]:
        cancelled = _cancel(session, _lock_due(session, ids, now), now)
        notify_cancelled(session, cancelled, now)
        return {"cancelled": len(cancelled), "left": len(ids) - len(cancelled)}

    return end_due(session, ENDS, now, cancel_batch, counts=["cancelled"], checkpoint=checkpoint, batch=batch)


def _close(session: Session, task_id: int, **values: object) -> bool:
    closed = update(Task).where(Task.id == task_id, OPEN).values(values).returning(Task.id)
    if session.scalar(closed, execution_options={"synchronize_session": False}) is not None:
        return True
    if session.scalar(select(Task.id).where(Task.id == task_id)) is None:
        raise UnknownTask(task_id)
    return False


def _lock_due(session: Session, ids: Sequence[int], now: datetime) -> Sequence[int]:
    due = select(Task.id).where(among(Task.id, ids), ENDS.due(now))
    return session.scalars(due.with_for_update(key_share=True, skip_locked=True)).all()


def _cancel(session: Session, ids: Sequence[int], now: datetime) -> Sequence[tuple[int, str]]:
    cancelled = (
        update(Task)
        .where(among(Task.id, ids))
        .values(state=TaskState.CANCELLED, cancelled_at=now, cancel_reason=CancelReason.DEADLINE_PASSED)
        .returning(Task.id, Task.owner_id)
        .execution_options(synchronize_session=False)
    )
    return [(task_id, owner_id) for task_id, owner_id in session.execute(cancelled)]
