"""Deletes time slots that ended long ago, unless one of their tasks is unfinished.

A slot without tasks is also deleted. Finished tasks are kept, without their slot.

The sweep locks a slot, and then its finished tasks. It deletes the slot only if it has locked all tasks of the slot. So
no task can be reopened, or added to the slot, in between. If another transaction has locked a slot, the next run
deletes the slot.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from core import Checkpoint, in_batches, sweep
from plugins.maintenance import places
from plugins.maintenance.models import Task, TaskState, TimeSlot
from plugins.maintenance.places import Place

FINISHED = Task.state.in_([TaskState.COMPLETED, TaskState.CANCELLED])


def delete_old_slots(
    session: Session, now: datetime, *, retention: timedelta, checkpoint: Checkpoint, batch: int = 1000
) -> dict[str, int]:
    """Delete slots that ended more than ``retention`` ago and have no unfinished task. Return the numbers of deleted
    and kept slots.
    """
    before = now - retention
    return sweep(
        session,
        in_batches(lambda last: _lock_old(session, before, last, batch)),
        lambda slots: _delete_finished(session, [slot.id for slot in slots]),
        table=TimeSlot.__tablename__,
        counts={"deleted": 0, "kept": 0, "failed": 0},
        checkpoint=checkpoint,
        refused="failed",
    )


def _lock_old(session: Session, before: datetime, last: Place | None, batch: int) -> list[Place]:
    old = (
        select(*places.columns(TimeSlot.id, TimeSlot.ends_at))
        .where(TimeSlot.ends_at < before, places.after(last, TimeSlot.id, TimeSlot.ends_at))
        .order_by(TimeSlot.ends_at, TimeSlot.id)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    return [Place(*row) for row in session.execute(old)]


def _delete_finished(session: Session, slot_ids: Sequence[int]) -> dict[str, int]:
    deletable = _deletable(session, slot_ids)
    session.execute(
        delete(TimeSlot).where(TimeSlot.id.in_(deletable)), execution_options={"synchronize_session": False}
    )
    return {"deleted": len(deletable), "kept": len(slot_ids) - len(deletable)}


def _deletable(session: Session, slot_ids: Sequence[int]) -> Sequence[int]:
    finished = select(Task.id).where(Task.time_slot_id.in_(slot_ids), FINISHED).with_for_update(skip_locked=True)
    locked = session.scalars(finished).all()
    other = exists().where(Task.time_slot_id == TimeSlot.id, Task.id.not_in(locked))
    return session.scalars(select(TimeSlot.id).where(TimeSlot.id.in_(slot_ids), ~other)).all()
