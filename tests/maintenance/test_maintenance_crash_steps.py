"""A process may end before or after any step: the next run finishes the work, and meanwhile rows and files agree."""

import os
from datetime import timedelta

import pytest
from maintenance_world import A_MOMENT, NOON, Crash, crash_at
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from plugins.maintenance.flea_market import delete_stale_items
from plugins.maintenance.models import FleaMarketImage, FleaMarketItem, Task, TaskFile
from plugins.maintenance.task_files import delete_files_of_completed
from plugins.maintenance.temp_images import delete_old_images

DUE = NOON + timedelta(days=10) + A_MOMENT
#: All functions that change files, and the commit.
STEPS = [(os, "unlink"), (os, "rmdir"), (os, "open"), (os, "fsync"), (Session, "commit")]
EMPTY = "TRUNCATE maintenance_tasks, maintenance_flea_market_items CASCADE"
#: More than the number of steps in any of these runs.
MANY = 400


def crash_everywhere(world, engine, monkeypatch, arrange, sweep, check):
    """For each step: arrange, crash at the step, check, run again, and check. Return the number of steps."""
    for number in range(MANY):
        world.session.execute(text(EMPTY))
        arrange()
        world.session.rollback()
        with monkeypatch.context() as patch, Session(engine) as own, world.opened() as root:
            calls = crash_at(patch, number, *STEPS)
            try:
                sweep(own, root)
            except Crash:
                own.rollback()  # PostgreSQL does this a moment after a connection has ended
            else:
                assert number // 2 >= len(calls)
                check(finished=True)
                return number
        check(finished=False)
        with Session(engine) as own, world.opened() as root:
            sweep(own, root)
        check(finished=True)
        assert world.files() == set()
    raise AssertionError(f"more than {MANY} steps")


def test_a_crash_at_any_step_of_deleting_task_files(world, engine, monkeypatch):
    def arrange():
        for _ in range(3):
            task_id = world.task("completed")
            world.file(task_id), world.file(task_id, "sub/b.jpg"), world.file(task_id, "c", parent="private/tasks")

    def sweep(own, root):
        delete_files_of_completed(own, root, DUE, checkpoint=lambda _: own.commit(), batch=2)

    def check(*, finished):
        """A row that is neither announced nor recorded still has its files. A recorded row has neither files nor file
        rows.
        """
        on_disk = world.files()
        world.session.rollback()
        for task in world.session.scalars(select(Task).execution_options(populate_existing=True)):
            rows = world.session.scalars(select(TaskFile.path).where(TaskFile.task_id == task.id)).all()
            there = {os.fsdecode(path) for path in rows} & on_disk
            assert not finished or task.files_deleted_at is not None
            if task.files_deletion_began_at is None:
                assert len(there) == len(rows) == 3
            if task.files_deleted_at is not None:
                assert not rows
                assert not any(f"/{task.id}/" in path for path in on_disk)

    assert crash_everywhere(world, engine, monkeypatch, arrange, sweep, check) > 50


def test_a_crash_at_any_step_of_deleting_flea_market_items(world, engine, monkeypatch):
    def arrange():
        for _ in range(3):
            world.item(NOON, "a.jpg", "b.jpg")

    def sweep(own, root):
        delete_stale_items(own, root, DUE, checkpoint=lambda _: own.commit(), batch=2)

    def check(*, finished):
        on_disk = world.files()
        world.session.rollback()
        items = world.session.scalars(select(FleaMarketItem).execution_options(populate_existing=True)).all()
        assert not finished or not items
        for item in items:
            rows = world.session.scalars(select(FleaMarketImage.path).where(FleaMarketImage.item_id == item.id)).all()
            if item.deletion_began_at is None:
                assert {os.fsdecode(path) for path in rows} <= on_disk
                assert len(rows) == 2
        assert {path.split("/")[1] for path in on_disk} <= {str(item.id) for item in items}

    assert crash_everywhere(world, engine, monkeypatch, arrange, sweep, check) > 30


def test_a_crash_at_any_step_of_deleting_temp_images(world, engine, monkeypatch):
    def arrange():
        for folder in ("public/images/public/temp_1", "flea_market/temp_2", "flea_market/temp_2/deeper"):
            for name in ("a.jpg", "b.png", "c.webp"):
                world.write(f"{folder}/{name}", modified_at=NOON)

    def sweep(own, root):
        delete_old_images(own, root, DUE, checkpoint=lambda _: own.commit(), batch=2)

    def check(*, finished):
        """Do nothing: there are no rows, and the test is that the next run deletes the remaining files."""

    assert crash_everywhere(world, engine, monkeypatch, arrange, sweep, check) > 30


@pytest.fixture(autouse=True)
def _close_what_a_crash_left_open():
    """Close the files of the crashed run. The end of a process would do that."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(set(os.listdir("/proc/self/fd")) - before) < 20


def test_folders_are_synced_after_the_last_file_went_and_before_anything_is_recorded(world, engine, monkeypatch):
    """Otherwise a power cut would restore files that are recorded as deleted."""
    for _ in range(2):
        world.file(world.task("completed"))
    calls = []
    with monkeypatch.context() as patch, Session(engine) as own, world.opened() as root:
        for place, name in ((os, "rmdir"), (os, "fsync"), (Session, "commit")):
            patch.setattr(place, name, noted(calls, name, getattr(place, name)))
        delete_files_of_completed(own, root, DUE, checkpoint=lambda _: own.commit())

    assert calls == ["fsync", "commit", "commit", "rmdir", "rmdir", "fsync", "commit"]  # first for the mark of the root


def noted(calls, name, function):
    def call(*args, **kwargs):
        calls.append(name)
        return function(*args, **kwargs)

    return call
