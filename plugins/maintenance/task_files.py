"""Images and files of tasks. They are deleted some days after the task was completed or cancelled, or its deadline
passed.

An image of task 12 is in ``public/images/public/12``, and any other file is in ``private/tasks/12``. These are the
task's own folders, and are deleted with their content. ``file_journal.py`` keeps rows and files consistent.
"""

import os
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import Checkpoint
from plugins.maintenance.errors import TaskFilesGone, UnknownTask, WallError
from plugins.maintenance.file_journal import Deletion, Journal
from plugins.maintenance.models import Task, TaskFile, TaskState

#: The files of a task are deleted when the task has been over for longer than this.
KEPT = timedelta(days=3)

UNSYNCHRONISED = {"synchronize_session": False}


def record_file(session: Session, task_id: int, path: str | bytes) -> None:
    """Record that the task has a file at ``path``, relative to the upload root and in one of the task's own folders.

    Recording a path again is not an error. Raises WallError for a path outside these folders, and UnknownTask. Raises
    TaskFilesGone while the task's files are being deleted, and afterwards as long as the task is over; in this case, do
    not write the file. If the task becomes active again, for example by a new deadline, it accepts files again.
    """
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        raise WallError(f"the path is not valid for a file of task {task_id}") from None
    if not JOURNAL.is_own(task_id, raw):
        raise WallError(f"the path is not in one of the folders of task {task_id}")
    # With this lock, a deletion that begins now waits for this transaction, or this transaction waits for the deletion.
    task = select(Task.files_deletion_began_at).where(Task.id == task_id).with_for_update(key_share=True)
    found = session.execute(task).one_or_none()
    if found is None:
        raise UnknownTask(task_id)
    if found.files_deletion_began_at is not None and not _revive(session, task_id):
        raise TaskFilesGone(task_id)
    session.execute(insert(TaskFile).values(task_id=task_id, path=raw).on_conflict_do_nothing())


def _revive(session: Session, task_id: int) -> bool:
    """Clear the record that the task's files were deleted, if all are deleted and the task is active again."""
    is_alive = Task.state.in_([TaskState.OPEN, TaskState.TAKEN]) & (
        Task.deadline_at.is_(None) | (Task.deadline_at >= func.now() - KEPT)
    )
    alive = update(Task).where(Task.id == task_id, Task.files_deleted_at.is_not(None), is_alive)
    revived = alive.values(files_deletion_began_at=None, files_deleted_at=None).returning(Task.id)
    return session.scalar(revived, execution_options=UNSYNCHRONISED) is not None


def delete_files_of_completed(
    session: Session, root: int, now: datetime, *, checkpoint: Checkpoint, batch: int = 100
) -> dict[str, int]:
    """Delete the files of tasks completed more than 3 days ago, batch by batch. Return the numbers of tasks, files and
    failures.
    """
    completed = (Task.state == TaskState.COMPLETED) & (Task.completed_at < now - KEPT)
    due = [(completed, Task.completed_at)]
    return Deletion(session, root, JOURNAL, due, now, checkpoint, batch).run()


def delete_files_of_expired(
    session: Session, root: int, now: datetime, *, checkpoint: Checkpoint, batch: int = 100
) -> dict[str, int]:
    """Delete the files of tasks cancelled, or past their deadline and not completed, for more than 3 days.

    The files are deleted batch by batch. Return the numbers of tasks, files and failures.
    """
    cancelled = (Task.state == TaskState.CANCELLED) & (Task.cancelled_at < now - KEPT)
    overdue = Task.state.in_([TaskState.OPEN, TaskState.TAKEN]) & (Task.deadline_at < now - KEPT)
    due = [(cancelled, Task.cancelled_at), (overdue, Task.deadline_at)]
    return Deletion(session, root, JOURNAL, due, now, checkpoint, batch).run()


def _record_deleted(session: Session, task_ids: Sequence[int], now: datetime) -> None:
    session.execute(delete(TaskFile).where(TaskFile.task_id.in_(task_ids)), execution_options=UNSYNCHRONISED)
    session.execute(
        update(Task).where(Task.id.in_(task_ids)).values(files_deleted_at=now), execution_options=UNSYNCHRONISED
    )


JOURNAL = Journal(
    noun="task",
    owner_id=Task.id,
    began_at=Task.files_deletion_began_at,
    is_going=Task.files_deletion_began_at.is_not(None) & Task.files_deleted_at.is_(None),
    file_owner_id=TaskFile.task_id,
    file_path=TaskFile.path,
    parents=[("public", "images", "public"), ("private", "tasks")],
    record=_record_deleted,
)
