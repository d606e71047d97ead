"""A worker killed with -9 in the middle of deleting files: another finishes, and rows and files agree."""

import pytest
from maintenance_world import NOON, World
from sqlalchemy.orm import Session

from plugins.maintenance.models import Task, TaskFile
from tests.support.eventually import eventually
from tests.support.fleet import fleet

pytestmark = pytest.mark.crash

TASKS, FILES_EACH = 400, 25
JOB = "cleanup-completed-task-files"


def test_a_worker_killed_in_the_middle_of_deleting_task_files(tmp_path, postgres_url, redis_url, root):
    environ = {"ROTA_MAINTENANCE_UPLOAD_ROOT": str(root)}
    with fleet(tmp_path, postgres_url, redis_url, jobs="none", environ=environ) as service:
        with Session(service.engine) as session:
            world = World(session, root)
            for _ in range(TASKS):
                task_id = world.task("completed", NOON)
                for number in range(FILES_EACH):
                    world.write(f"private/tasks/{task_id}/{number}")
                world.add(TaskFile, task_id=task_id, path=b"private/tasks/%d/0" % task_id)
        own_folders = root / "private" / "tasks"
        worker = service.worker()

        service.request(JOB, queue="maintenance")
        eventually(lambda: len(list(own_folders.iterdir())) < TASKS, within=30, every=0.001)
        service.kill(worker)

        left = {int(path.name) for path in own_folders.iterdir()}
        assert 0 < len(left) < TASKS, "killed in the middle"
        with Session(service.engine) as session:
            for task in session.query(Task):
                if task.files_deletion_began_at is None:
                    assert len(list((own_folders / str(task.id)).iterdir())) == FILES_EACH
                if task.files_deleted_at is not None:
                    assert task.id not in left

        service.worker()
        (run,) = eventually(lambda: [row for row in service.runs(JOB) if row.state == "succeeded"], within=60)

        assert run.attempt == 2
        assert list(own_folders.iterdir()) == []
        with Session(service.engine) as session:
            assert session.query(Task).where(Task.files_deleted_at.is_(None)).count() == 0
            assert session.query(TaskFile).count() == 0
