"""Open tasks whose deadline has passed are cancelled, and their owners told, once."""

from datetime import datetime, timedelta

import pytest
from expiry_world import A_MOMENT, BEFORE, NOON, TASKS
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from plugins.expiry import BadInstant, UnknownTask, cancel_task, complete_task, open_task
from plugins.expiry.models import Notification, Task
from tests.support.racing import race


def get(session: Session, task_id: int) -> Task:
    session.expire_all()
    return session.get_one(Task, task_id)


def test_a_cancelled_task_says_when_and_why(session):
    (task_id,) = TASKS.fill(session, 1)

    assert TASKS.sweep(session, NOON + timedelta(seconds=30)) == {"cancelled": 1, "left": 0, "broken": 0}

    task = get(session, task_id)
    assert (task.state, task.cancelled_at) == ("cancelled", NOON + timedelta(seconds=30))
    assert (task.cancel_reason, task.deadline_at) == ("deadline_passed", NOON)


def test_the_owner_is_told_by_a_row_and_live(session, published):
    (task_id,) = TASKS.fill(session, 1)

    TASKS.sweep(session)

    stored = session.scalars(select(Notification)).one()
    assert (stored.task_id, stored.owner_id, stored.kind) == (task_id, "owner-0", "task_cancelled")
    assert stored.created_at == NOON
    message = {
        "id": stored.id,
        "kind": "task_cancelled",
        "task_id": task_id,
        "reason": "deadline_passed",
        "cancelled_at": NOON.isoformat(),
    }
    assert published == [("expiry:notifications:owner-0", message)]


def test_the_owner_is_told_once_however_often_it_runs(session, published):
    TASKS.fill(session, 3)

    for minutes in range(3):
        TASKS.sweep(session, NOON + timedelta(minutes=minutes))

    assert len(published) == len(session.scalars(select(Notification)).all()) == 3


def test_a_cancellation_that_rolls_back_tells_nobody(session, published):
    TASKS.fill(session, 1)
    TASKS.expire(session, NOON, checkpoint=lambda _: None)
    session.rollback()

    assert published == []
    assert session.scalars(select(Notification)).all() == []


def test_completed_and_withdrawn_tasks_are_left_alone(session, published):
    done, withdrawn = TASKS.fill(session, 2)
    assert complete_task(session, done, NOON - timedelta(hours=1))
    assert cancel_task(session, withdrawn, NOON - timedelta(hours=2))
    session.commit()

    assert TASKS.sweep(session)["cancelled"] == 0

    assert (get(session, done).state, get(session, done).completed_at) == ("completed", NOON - timedelta(hours=1))
    task = get(session, withdrawn)
    assert (task.state, task.cancel_reason, task.cancelled_at) == ("cancelled", "withdrawn", NOON - timedelta(hours=2))
    assert published == []


def test_a_task_closes_once(session):
    (task_id,) = TASKS.fill(session, 1)
    TASKS.sweep(session)

    assert not complete_task(session, task_id, NOON)
    assert not cancel_task(session, task_id, NOON)
    assert get(session, task_id).cancel_reason == "deadline_passed"


def test_past_its_deadline_a_task_no_sweep_has_seen_may_still_be_completed(session):
    (task_id,) = TASKS.fill(session, 1)

    assert complete_task(session, task_id, NOON + timedelta(seconds=20))
    session.commit()

    assert TASKS.sweep(session, NOON + timedelta(seconds=30))["cancelled"] == 0


def test_completing_and_sweeping_at_once_one_of_them_wins(session, database):
    ids = TASKS.fill(session, 40)

    def complete() -> int:
        with Session(database) as own:
            done = 0
            for task_id in ids:
                done += complete_task(own, task_id, NOON)
                own.commit()
            return done

    def sweep() -> int:
        with Session(database) as own:
            return TASKS.sweep(own, batch=3)["cancelled"]

    completed, cancelled = race(complete, sweep)

    assert completed + cancelled == 40
    assert len(session.scalars(select(Notification)).all()) == cancelled


def test_an_unknown_task_cannot_be_closed(session):
    with pytest.raises(UnknownTask, match="unknown task 7"):
        cancel_task(session, 7, NOON)


@pytest.mark.parametrize("deadline", [NOON, NOON - A_MOMENT, NOON.replace(tzinfo=None), "tomorrow", None])
def test_a_deadline_must_be_an_instant_to_come(session, deadline: object):
    with pytest.raises(BadInstant, match="bad deadline_at="):
        open_task(session, "ann", deadline, NOON)  # type: ignore[arg-type]


def test_the_last_instant_python_knows_is_a_deadline(session):
    last = datetime.max.replace(tzinfo=NOON.tzinfo)

    assert open_task(session, "ann", last, BEFORE) == 1


def test_a_task_can_be_deleted_though_its_owner_was_told(session, do):
    (task_id,) = TASKS.fill(session, 1)
    TASKS.sweep(session)
    assert session.scalar(select(func.count()).select_from(Notification)) == 1
    session.commit()

    assert do("DELETE FROM expiry_tasks WHERE id = :id", id=task_id) == 1
    assert session.scalar(select(func.count()).select_from(Notification)) == 0
