"""Old time slots are deleted, unless one of their tasks is unfinished."""

from datetime import timedelta

import pytest
from maintenance_world import A_MOMENT, NOON
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from plugins.maintenance.models import Task, TimeSlot
from plugins.maintenance.time_slots import delete_old_slots
from tests.support.emitted import emitted
from tests.support.racing import race

RETENTION = timedelta(days=90)
DUE = NOON + RETENTION + A_MOMENT


def sweep(world, now=DUE, retention=RETENTION, batch=1000):
    return delete_old_slots(world.session, now, retention=retention, checkpoint=world.checkpoint, batch=batch)


def test_after_more_than_the_retention_and_not_at_exactly_it(world):
    slot = world.slot(NOON)
    task = world.task("completed", time_slot_id=slot)

    assert sweep(world, NOON + RETENTION) == {"deleted": 0, "kept": 0, "failed": 0}
    assert sweep(world) == {"deleted": 1, "kept": 0, "failed": 0}
    assert sweep(world) == {"deleted": 0, "kept": 0, "failed": 0}
    assert world.count(TimeSlot) == 0
    assert world.get(Task, task).time_slot_id is None, "the task survives"


@pytest.mark.parametrize(
    ("states", "goes"),
    [
        ([], True),
        (["completed"], True),
        (["cancelled"], True),
        (["completed", "cancelled", "completed"], True),
        (["open"], False),
        (["taken"], False),
        (["completed", "completed", "open"], False),
    ],
    ids=str,
)
def test_only_where_every_task_is_finished(world, states, goes):
    slot = world.slot(NOON)
    for state in states:
        world.task(state, time_slot_id=slot)
    world.task("open")

    assert sweep(world) == {"deleted": int(goes), "kept": int(not goes), "failed": 0}
    assert world.count(TimeSlot) == int(not goes)


def test_slots_that_are_kept_do_not_keep_a_sweep_from_the_others_and_it_ends(world):
    for number in range(20):
        slot = world.slot(NOON - timedelta(days=number % 3))
        world.task("completed" if number % 2 else "open", time_slot_id=slot)

    assert sweep(world, batch=3) == {"deleted": 10, "kept": 10, "failed": 0}
    assert len(world.checkpoints) == 7


def test_the_retention_may_be_nothing(world):
    world.slot(NOON)

    assert sweep(world, NOON, timedelta(0))["deleted"] == 0
    assert sweep(world, NOON + A_MOMENT, timedelta(0))["deleted"] == 1


def test_ends_that_are_none_harm_nobody(world):
    for end in ("infinity", "-infinity", "9999-12-31 23:00+00"):
        slot = world.slot(NOON)
        world.session.execute(
            text("UPDATE maintenance_time_slots SET ends_at = :end WHERE id = :id"), {"end": end, "id": slot}
        )
    kept = world.slot(NOON)
    world.session.execute(text("UPDATE maintenance_time_slots SET ends_at = '-infinity' WHERE id = :id"), {"id": kept})
    world.task("open", time_slot_id=kept)

    assert sweep(world, batch=1) == {"deleted": 1, "kept": 1, "failed": 0}


def test_a_task_that_is_being_reopened_or_put_on_a_slot_keeps_it(world, engine):
    reopened, joined = world.slot(NOON), world.slot(NOON)
    task, other = world.task("completed", time_slot_id=reopened), world.task("open")

    with Session(engine) as application:
        application.execute(update(Task).where(Task.id == task).values(state="taken", completed_at=None))
        application.execute(update(Task).where(Task.id == other).values(time_slot_id=joined))
        assert sweep(world)["deleted"] == 0
        application.commit()

    assert sweep(world) == {"deleted": 0, "kept": 2, "failed": 0}


def test_nothing_can_be_put_on_a_slot_that_is_being_deleted(world, engine):
    slot, task = world.slot(NOON), world.task("open")

    def put_on_it_meanwhile(_progress):
        with Session(engine) as application:
            application.execute(text("SET LOCAL lock_timeout = '200ms'"))
            with pytest.raises(DBAPIError, match="lock timeout"):
                application.execute(update(Task).where(Task.id == task).values(time_slot_id=slot))
        world.session.commit()

    counts = delete_old_slots(world.session, DUE, retention=RETENTION, checkpoint=put_on_it_meanwhile)

    assert counts["deleted"] == 1
    with pytest.raises(IntegrityError):
        world.session.execute(update(Task).where(Task.id == task).values(time_slot_id=slot))


def test_a_slot_that_a_constraint_holds_does_not_keep_the_others(world, caplog):
    held, *_ = (world.slot(NOON) for _ in range(9))
    world.session.execute(text("CREATE TABLE bookings (slot_id bigint REFERENCES maintenance_time_slots)"))
    world.session.execute(text("INSERT INTO bookings VALUES (:id)"), {"id": held})
    world.session.commit()

    try:
        assert sweep(world) == {"deleted": 8, "kept": 0, "failed": 1}
        [refused] = emitted(caplog, "sweep.rows_refused")
        assert (refused.table, refused.ids) == ("maintenance_time_slots", str(held))
        assert refused.reason.startswith("ForeignKeyViolation")
    finally:
        world.session.rollback()
        world.session.execute(text("DROP TABLE bookings"))
        world.session.commit()


def test_four_sweeps_at_once_delete_each_slot_once(world, engine):
    for number in range(200):
        slot = world.slot(NOON)
        if number % 4:
            world.task("completed" if number % 2 else "open", time_slot_id=slot)

    def one():
        with Session(engine) as own:
            return delete_old_slots(own, DUE, retention=RETENTION, checkpoint=lambda _: own.commit(), batch=9)

    done = race(one, one, one, one)

    assert sum(counts["deleted"] for counts in done) == 150
    assert world.count(TimeSlot) == 50
    assert sum(counts["failed"] for counts in done) == 0


def test_a_crash_between_batches_loses_nothing(world):
    for _ in range(9):
        world.slot(NOON)

    def crash_on_the_second(progress):
        if progress["deleted"] > 4:
            raise ConnectionError
        world.session.commit()

    with pytest.raises(ConnectionError):
        delete_old_slots(world.session, DUE, retention=RETENTION, checkpoint=crash_on_the_second, batch=4)

    assert world.count(TimeSlot) == 5
    assert sweep(world)["deleted"] == 5
