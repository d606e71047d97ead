"""Time slots that are long over, deleted unless a task on them is unfinished.

A slot with no tasks goes as well: it holds neither history nor unfinished work. Tasks stay, without their slot.

A slot is locked, then its finished tasks, and then it is deleted only if it has no task that is not among the locked
ones: nobody can reopen a task, or put one on the slot, in between. What somebody else has locked is left to tomorrow.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Row, Text, cast, delete, exists, literal, select, tuple_
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import Session

from core import Checkpoint
from plugins.maintenance import pieces
from plugins.maintenance.models import Task, TaskState, TimeSlot

FINISHED = Task.state.in_([TaskState.COMPLETED, TaskState.CANCELLED])


def delete_old_slots(
    session: Session, now: datetime, *, retention: timedelta, checkpoint: Checkpoint, batch: int = 1000
) -> dict[str, int]:
    """Delete slots that ended more than ``retention`` ago and have no unfinished task; count, also those kept."""
    counts = {"deleted": 0, "kept": 0, "failed": 0}
    after = None
    while slots := _lock_old(session, now - retention, after, batch):
        after = slots[-1]
        deletable = _deletable(session, [slot.id for slot in slots])
        failed = pieces.apply(session, deletable, lambda ids: _delete(session, ids), noun="time_slot")
        counts["deleted"] += len(deletable) - failed
        counts["kept"] += len(slots) - len(deletable)
        counts["failed"] += failed
        checkpoint(counts)
    return counts


def _lock_old(session: Session, before: datetime, after: Row[int, str] | None, batch: int) -> Sequence[Row[int, str]]:
    # The end as text: PostgreSQL knows instants that Python does not, and they are here only to be given back.
    old = select(TimeSlot.id, cast(TimeSlot.ends_at, Text).label("ends_at")).where(TimeSlot.ends_at < before)
    if after is not None:
        last = tuple_(cast(literal(after.ends_at), TIMESTAMP(timezone=True)), literal(after.id))
        old = old.where(tuple_(TimeSlot.ends_at, TimeSlot.id) > last)
    order = old.order_by(TimeSlot.ends_at, TimeSlot.id).limit(batch)
    return session.execute(order.with_for_update(skip_locked=True)).all()


def _deletable(session: Session, slot_ids: Sequence[int]) -> Sequence[int]:
    finished = select(Task.id).where(Task.time_slot_id.in_(slot_ids), FINISHED).with_for_update(skip_locked=True)
    locked = session.scalars(finished).all()
    other = exists().where(Task.time_slot_id == TimeSlot.id, Task.id.not_in(locked))
    return session.scalars(select(TimeSlot.id).where(TimeSlot.id.in_(slot_ids), ~other)).all()


def _delete(session: Session, slot_ids: Sequence[int]) -> None:
    session.execute(delete(TimeSlot).where(TimeSlot.id.in_(slot_ids)), execution_options={"synchronize_session": False})
