"""Files of a task are deleted three days after the task is over, and files of other tasks are not."""

import os
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from maintenance_world import A_MOMENT, NOON
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from plugins.maintenance import TaskFilesGone, UnknownTask, UploadRootError, WallError, record_file, task_files
from plugins.maintenance.models import Task, TaskFile
from plugins.maintenance.task_files import delete_files_of_completed, delete_files_of_expired
from plugins.maintenance.upload_mark import MARK
from tests.support.racing import race

THREE_DAYS = timedelta(days=3)
DUE = NOON + THREE_DAYS + A_MOMENT
LONDON = ZoneInfo("Europe/London")


def sweep(world, now=DUE, *, delete=delete_files_of_completed, batch=100):
    with world.opened() as root:
        return delete(world.session, root, now, checkpoint=world.checkpoint, batch=batch)


@pytest.mark.parametrize(
    ("delete", "task"),
    [
        pytest.param(delete_files_of_completed, {"state": "completed"}, id="completed"),
        pytest.param(delete_files_of_expired, {"state": "cancelled"}, id="cancelled"),
        pytest.param(delete_files_of_expired, {"state": "open", "deadline_at": NOON}, id="open past its deadline"),
        pytest.param(delete_files_of_expired, {"state": "taken", "deadline_at": NOON}, id="taken past its deadline"),
    ],
)
def test_after_more_than_three_days_and_not_at_exactly_three(world, delete, task):
    task_id = world.task(**task)
    photo, paper = world.file(task_id), world.file(task_id, "deep/er/a.pdf", parent="private/tasks")

    assert sweep(world, NOON + THREE_DAYS, delete=delete) == {"tasks": 0, "files": 0, "failed": 0}
    assert world.count(TaskFile) == 2
    assert photo.exists()
    assert paper.exists()

    assert sweep(world, DUE, delete=delete) == {"tasks": 1, "files": 2, "failed": 0}
    assert world.count(TaskFile) == 0
    assert world.files() == set()
    assert world.get(Task, task_id).files_deleted_at == DUE


def test_three_days_are_seventy_two_hours_in_the_nights_the_clocks_change(world):
    """Instants are compared, so three days are 72 hours even if clocks change."""
    spring, autumn = (datetime(2026, month, day, 12, tzinfo=LONDON) for month, day in ((3, 28), (10, 24)))
    for at in (spring, autumn):
        world.file(world.task("completed", at))
        after_72_hours = at.astimezone(ZoneInfo("UTC")) + timedelta(hours=72)

        assert sweep(world, after_72_hours)["tasks"] == 0
        assert sweep(world, after_72_hours + A_MOMENT)["tasks"] == 1


@pytest.mark.parametrize(
    ("delete", "task"),
    [
        (delete_files_of_completed, {"state": "cancelled"}),
        (delete_files_of_completed, {"state": "open", "deadline_at": NOON}),
        (delete_files_of_expired, {"state": "completed", "deadline_at": NOON - timedelta(days=9)}),
        (delete_files_of_expired, {"state": "open"}),
        (delete_files_of_expired, {"state": "taken", "deadline_at": datetime(9999, 12, 31, 23, tzinfo=LONDON)}),
        (delete_files_of_completed, {"state": "completed", "at": datetime(9999, 12, 31, 23, tzinfo=LONDON)}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_task_that_the_rule_does_not_name_keeps_its_files(world, delete, task):
    photo = world.file(world.task(**task))

    assert sweep(world, delete=delete)["tasks"] == 0
    assert photo.exists()


def test_instants_that_are_none_harm_nobody(world):
    early, late, due = (world.task("completed") for _ in range(3))
    for task_id, at in ((early, "-infinity"), (late, "infinity")):
        world.session.execute(
            text("UPDATE maintenance_tasks SET completed_at = :at WHERE id = :id"), {"at": at, "id": task_id}
        )
    world.session.commit()
    photos = [world.file(task_id) for task_id in (early, late, due)]

    assert sweep(world)["tasks"] == 2
    assert [photo.exists() for photo in photos] == [False, True, False]


def test_only_the_own_folders_go_and_nothing_above_or_beside(world):
    due, other = world.task("completed"), world.task("open")
    world.file(due), world.file(other)
    beside = [
        world.write(f"public/images/public/{name}")
        for name in (f"{due}0/a.jpg", f"temp_{due}/a.jpg", "a.jpg", f"x/{due}/a.jpg")
    ]

    sweep(world)

    assert world.files() == {f"public/images/public/{other}/photo.jpg"} | {
        str(path.relative_to(world.root)) for path in beside
    }
    assert not (world.root / f"public/images/public/{due}").exists()


def test_what_no_row_names_goes_with_the_folder_and_a_missing_file_is_no_error(world):
    task_id = world.task("completed")
    world.file(task_id).unlink()
    world.write(f"private/tasks/{task_id}/left over from a crashed upload")

    assert sweep(world) == {"tasks": 1, "files": 1, "failed": 0}
    assert world.files() == set()


def test_a_task_without_files_is_done_once(world):
    world.task("completed")

    assert sweep(world)["tasks"] == 1
    assert sweep(world)["tasks"] == 0


HOSTILE = [
    b"/etc/passwd",
    b"../outside.jpg",
    b"public/images/public/%d/../9/photo.jpg",
    b"public/images/public/%d/..",
    b"public/images/public/%d",
    b"public/images/public/%d/",
    b"public/images/public/%d//a.jpg",
    b"public/images/public/./%d/a.jpg",
    b"public/images/public/9/photo.jpg",
    b"public/images/public/%d0/a.jpg",
    b"public/images/public/%d/a\0b.jpg",
    b"public/images/public/%d/" + b"n" * 256,
    b"PUBLIC/images/public/%d/a.jpg",
    b"",
    b".",
]


@pytest.mark.parametrize("path", HOSTILE, ids=repr)
def test_a_row_that_names_a_path_elsewhere_is_left_with_its_task_and_the_others_go_on(world, caplog, path):
    hostile, fine = world.task("completed"), world.task("completed")
    outside = world.write("../outside.jpg")
    of_another = world.write("public/images/public/9/photo.jpg")
    world.add(TaskFile, task_id=hostile, path=path.replace(b"%d", b"%d" % hostile))
    world.file(hostile), world.file(fine)

    assert sweep(world) == {"tasks": 1, "files": 2, "failed": 1}

    assert outside.exists()
    assert of_another.exists()
    assert world.get(Task, hostile).files_deleted_at is None
    assert world.get(Task, fine).files_deleted_at is not None
    assert f"files.refused task={hostile} " in caplog.text
    assert "passwd" not in caplog.text
    assert sweep(world) == {"tasks": 0, "files": 0, "failed": 1}, "reported again until somebody looks"


def test_names_that_are_not_utf8_go_like_any_other(world):
    task_id = world.task("completed")
    for name in (b"\xff\xfe.jpg", b"caf\xe9.png", "né€.gif".encode(), b"new\nline.jpg", b"-rf", b" "):
        path = b"public/images/public/%d/%s" % (task_id, name)
        world.add(TaskFile, task_id=task_id, path=path)
        world.write(os.fsdecode(path))

    assert sweep(world) == {"tasks": 1, "files": 6, "failed": 0}
    assert world.files() == set()


def test_each_batch_is_announced_and_recorded_with_a_checkpoint(world):
    for _ in range(5):
        world.file(world.task("completed"))

    assert sweep(world, batch=2)["tasks"] == 5

    assert [progress["tasks"] for progress in world.checkpoints] == [0, 0, 0, 0, 2, 4, 5]


def test_a_failed_batch_keeps_those_before_it_and_the_next_run_does_the_rest(world):
    for _ in range(5):
        world.file(world.task("completed"))

    def fail_on_the_third(progress):
        if progress["tasks"] > 2:
            raise ConnectionError
        world.checkpoint(progress)

    with world.opened() as root, pytest.raises(ConnectionError):
        delete_files_of_completed(world.session, root, DUE, checkpoint=fail_on_the_third, batch=2)

    assert world.count(Task, Task.files_deleted_at.is_not(None)) == 2
    assert sweep(world)["tasks"] == 3
    assert world.files() == set()


def test_four_sweeps_at_once_delete_everything_once(world, engine):
    for _ in range(60):
        world.file(world.task("completed"))

    def one():
        with Session(engine) as own, world.opened() as root:
            return delete_files_of_completed(own, root, DUE, checkpoint=lambda _: own.commit(), batch=7)

    done = race(one, one, one, one)

    assert {what: sum(counts[what] for counts in done) for what in done[0]} == {"tasks": 60, "files": 60, "failed": 0}
    assert world.files() == set()
    assert world.count(TaskFile) == 0


def test_what_was_announced_is_carried_through_even_if_the_task_was_reopened(world):
    """Some of the files may be deleted already, so no row may list them."""
    task_id = world.task("open", files_deletion_began_at=NOON)
    world.file(task_id)

    assert sweep(world)["tasks"] == 1
    assert world.files() == set()


def test_a_task_that_somebody_has_locked_is_left_to_the_next_run(world, engine):
    task_id = world.task("completed")
    world.file(task_id)

    with Session(engine) as other:
        other.execute(update(Task).where(Task.id == task_id).values(category="x"))
        assert sweep(world)["tasks"] == 0
        other.rollback()

    assert sweep(world)["tasks"] == 1


def test_a_task_reopened_just_before_keeps_its_files(world):
    task_id = world.task("completed")
    photo = world.file(task_id)
    world.session.execute(update(Task).where(Task.id == task_id).values(state="open", completed_at=None))
    world.session.commit()

    assert sweep(world)["tasks"] == 0
    assert photo.exists()


def test_a_row_that_a_constraint_holds_does_not_keep_the_others(world):
    """Another table of the application refers to the file's row."""
    held, *others = (world.task("completed") for _ in range(4))
    for task_id in (held, *others):
        world.file(task_id)
    world.session.execute(
        text("""
            CREATE TABLE held (task_id bigint, path bytea,
                FOREIGN KEY (task_id, path) REFERENCES maintenance_task_files (task_id, path))
        """)
    )
    world.session.execute(
        text("INSERT INTO held SELECT task_id, path FROM maintenance_task_files WHERE task_id = :id"), {"id": held}
    )
    world.session.commit()

    try:
        assert sweep(world) == {"tasks": 3, "files": 4, "failed": 1}
        assert world.get(Task, held).files_deleted_at is None
    finally:
        world.session.rollback()
        world.session.execute(text("DROP TABLE held"))
        world.session.commit()
    assert sweep(world) == {"tasks": 1, "files": 0, "failed": 0}


def test_recording_a_file_takes_paths_in_the_own_folders_alone(world):
    task_id = world.task()
    record_file(world.session, task_id, f"private/tasks/{task_id}/a.pdf")
    record_file(world.session, task_id, f"private/tasks/{task_id}/a.pdf")
    record_file(world.session, task_id, f"public/images/public/{task_id}/\udcff.jpg")
    world.session.commit()

    assert world.count(TaskFile) == 2
    for path in [
        *(path.replace(b"%d", b"%d" % task_id) for path in HOSTILE),
        "\ud800",
        f"private/tasks/{task_id}/\ud800",
    ]:
        with pytest.raises(WallError):
            record_file(world.session, task_id, path)
    with pytest.raises(UnknownTask, match="unknown task 99"):
        record_file(world.session, 99, "private/tasks/99/a.pdf")


def test_a_task_takes_no_file_once_its_files_are_going(world):
    task_id = world.task("completed")
    sweep(world)

    with pytest.raises(TaskFilesGone, match=f"task {task_id}"):
        record_file(world.session, task_id, f"private/tasks/{task_id}/a.pdf")


def test_a_file_that_is_being_recorded_holds_the_deletion_up_until_the_next_run(world, engine):
    task_id = world.task("completed")
    with Session(engine) as other:
        record_file(other, task_id, f"private/tasks/{task_id}/a.pdf")
        assert sweep(world)["tasks"] == 0
        other.commit()

    assert sweep(world)["tasks"] == 1
    assert world.count(TaskFile) == 0


def test_a_deletion_cannot_begin_between_asking_whether_it_has_and_recording_a_file(world, engine, monkeypatch):
    task_id = world.task("completed")
    insert = task_files.insert

    def and_a_sweep_comes_first(model):
        with Session(engine) as other, world.opened() as root:
            delete_files_of_completed(other, root, DUE, checkpoint=lambda _: other.commit())
        return insert(model)

    monkeypatch.setattr(task_files, "insert", and_a_sweep_comes_first)
    record_file(world.session, task_id, f"private/tasks/{task_id}/a.pdf")
    world.session.commit()

    assert world.get(Task, task_id).files_deletion_began_at is None
    assert sweep(world)["tasks"] == 1
    assert world.count(TaskFile) == 0


class TestANewDeadline:
    """A task whose files were deleted accepts files again if it becomes active, and loses them when it is over."""

    @pytest.mark.parametrize("deadline", ["now() + interval '1 day'", "now() - interval '2 days'", "NULL"])
    def test_it_takes_files_again(self, world, deadline):
        task_id = world.task("open", deadline_at=NOON)
        sweep(world, delete=delete_files_of_expired)
        world.session.execute(text(f"UPDATE maintenance_tasks SET deadline_at = {deadline}"))

        record_file(world.session, task_id, f"private/tasks/{task_id}/a.pdf")
        world.session.commit()

        task = world.get(Task, task_id)
        assert (task.files_deletion_began_at, task.files_deleted_at) == (None, None)
        world.session.execute(text("UPDATE maintenance_tasks SET deadline_at = '2026-01-05'"))
        world.session.commit()
        assert sweep(world, delete=delete_files_of_expired)["tasks"] == 1
        assert world.count(TaskFile) == 0

    def test_it_takes_none_while_its_deadline_is_past(self, world):
        task_id = world.task("open", deadline_at=NOON)
        sweep(world, delete=delete_files_of_expired)

        with pytest.raises(TaskFilesGone):
            record_file(world.session, task_id, f"private/tasks/{task_id}/a.pdf")

    def test_it_takes_none_while_its_files_are_being_deleted(self, world):
        task_id = world.task("open", files_deletion_began_at=NOON)

        with pytest.raises(TaskFilesGone):
            record_file(world.session, task_id, f"private/tasks/{task_id}/a.pdf")


def test_a_row_that_cannot_be_announced_keeps_its_files_and_no_other_from_going(world):
    refused, *others = (world.task("completed") for _ in range(5))
    kept, *_ = (world.file(task_id) for task_id in (refused, *others))
    world.session.execute(
        text(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN IF old.id = {refused} THEN RAISE 'no'; END IF; RETURN new; END $$;"
            " CREATE TRIGGER refuse BEFORE UPDATE ON maintenance_tasks FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    )
    world.session.commit()

    try:
        assert sweep(world, batch=2) == {"tasks": 4, "files": 4, "failed": 1}
        assert kept.exists()
    finally:
        world.session.execute(text("DROP TRIGGER refuse ON maintenance_tasks; DROP FUNCTION refuse"))
        world.session.commit()


class TestTheMarkOfTheRoot:
    def test_an_empty_root_is_refused_while_rows_say_that_there_are_files(self, world):
        task_id = world.task("completed")
        world.file(task_id).unlink()
        for folder in ("public/images/public/%d", "public/images/public", "public/images", "public"):
            (world.root / (folder % task_id if "%" in folder else folder)).rmdir()

        with pytest.raises(UploadRootError, match="its volume may not be mounted"):
            sweep(world)

        assert world.count(TaskFile) == 1
        (world.root / MARK).touch()
        assert sweep(world) == {"tasks": 1, "files": 0, "failed": 0}

    def test_a_root_that_has_lost_its_mark_is_refused_though_it_is_not_empty(self, world):
        sweep(world)
        (world.root / MARK).unlink()
        photo = world.file(world.task("completed"))

        with pytest.raises(UploadRootError, match="create an empty file of that name in it"):
            sweep(world)

        assert photo.exists()

    def test_a_new_root_is_marked(self, world):
        sweep(world)

        assert (world.root / MARK).exists()
