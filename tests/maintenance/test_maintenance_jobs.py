"""The ten jobs in Rota: registered as the catalogue says, and run with the real claim, fence and commit."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint

import pytest
import redis
from maintenance_world import NOON, World, age
from sqlalchemy.orm import Session

from core import cron, every
from core.ledger.models import RunRow
from core.plugins import loading
from plugins.maintenance import Maintenance, file_journal, jobs
from plugins.maintenance.models import FleaMarketItem, Task, TaskExpert, TimeSlot, UserStatistics
from plugins.maintenance.settings import MaintenanceSettings

LONDON = "Europe/London"
CATALOGUE = {
    "cleanup-expired-sessions": every(hours=1),
    "cleanup-expired-cache": every(hours=1),
    "cleanup-completed-task-files": cron("10 3 * * *", tz=LONDON),
    "cleanup-expired-task-files": cron("20 3 * * *", tz=LONDON),
    "cleanup-expired-flea-market-items": cron("30 3 * * *", tz=LONDON),
    "cleanup-unused-temp-images": every(hours=1),
    "cleanup-expired-time-slots": cron("40 3 * * *", tz=LONDON),
    "update-all-users-statistics": every(minutes=10),
    "update-featured-task-experts-response-time": cron("0 4 * * *", tz=LONDON),
    "update-task-experts-bio": cron("10 4 * * *", tz=LONDON),
}
RETIRED = {
    "auto-complete-expired-time-slot-tasks",
    "check-and-end-activities",
    "auto-generate-future-time-slots",
}
NEED_THE_ROOT = [
    "cleanup-completed-task-files",
    "cleanup-expired-task-files",
    "cleanup-expired-flea-market-items",
    "cleanup-unused-temp-images",
]
LONG_AGO = NOON - timedelta(days=200)


@pytest.fixture(scope="module")
def registry():
    return loading.load([EntryPoint("maintenance", "plugins.maintenance:Maintenance", "rota.plugins")])


@pytest.fixture
def service(database, root, monkeypatch):
    """Yield rows and files in a database of their own, with the upload root set."""
    monkeypatch.setenv("ROTA_MAINTENANCE_UPLOAD_ROOT", str(root))
    MaintenanceSettings.forget()
    with Session(database) as session:
        yield World(session, root)


def test_the_jobs_are_those_of_the_catalogue(registry):
    assert not list(registry.broken())
    ours = {job.name: job for job in registry if job.queue == "maintenance"}

    assert {name: job.schedule for name, job in ours.items()} == CATALOGUE
    assert {(job.max_retries, job.retry_delay, job.backoff) for job in ours.values()} == {
        (2, timedelta(seconds=300), "fixed")
    }
    assert {(job.soft_limit, job.hard_limit, job.overlap) for job in ours.values()} == {
        (timedelta(minutes=25), timedelta(minutes=30), "skip")
    }


def test_every_job_says_what_it_does(registry):
    assert all(registry.job(name).description.endswith(".") for name in CATALOGUE)


def test_the_retired_jobs_are_not_here(registry):
    assert not RETIRED & {job.name for job in registry}
    assert not RETIRED & {job.name for job in loading.current()}


@pytest.mark.parametrize("name", [name for name, schedule in CATALOGUE.items() if str(schedule).endswith(LONDON)])
def test_a_daily_job_is_due_once_on_the_days_the_clocks_change(registry, name):
    schedule = registry.job(name).schedule
    for day in (datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)):
        slots = list(schedule.between(day - timedelta(hours=1), day + timedelta(hours=23)))
        assert len(slots) == 1


def test_the_migrations_are_where_the_plugin_says():
    assert [path.name for path in Maintenance().register_migrations().glob("0*.py")] == ["0001_maintenance.py"]


def fill(world, redis_url):
    """Make rows and files for every job. At NOON all of them are due."""
    world.file(world.task("completed", LONG_AGO))
    world.file(world.task("cancelled", LONG_AGO))
    world.item(LONG_AGO, "a.jpg")
    world.write("flea_market/temp_1/a.jpg", modified_at=LONG_AGO)
    world.slot(LONG_AGO)
    world.expert()
    world.inquiry("zoe", LONG_AGO, LONG_AGO + timedelta(hours=1))
    with redis.Redis.from_url(redis_url) as store:
        store.set("session:a", json.dumps({"is_active": False}))
        store.set("cache:a", json.dumps({"timestamp": 10**9}))


RESULTS = {
    "cleanup-expired-sessions": {"inactive": 1, "gone": 0, "unreadable": 0},
    "cleanup-expired-cache": {"deleted": 1, "untimed": 0},
    "cleanup-completed-task-files": {"tasks": 1, "files": 1, "failed": 0},
    "cleanup-expired-task-files": {"tasks": 1, "files": 1, "failed": 0},
    "cleanup-expired-flea-market-items": {"items": 1, "files": 1, "failed": 0},
    "cleanup-unused-temp-images": {"deleted": 1, "folders": 0, "entries": 2, "failed": 0},
    "cleanup-expired-time-slots": {"deleted": 1, "kept": 0, "failed": 0},
    "update-all-users-statistics": {"users": 1, "failed": 0},
    "update-featured-task-experts-response-time": {"experts": 1, "failed": 0},
    "update-task-experts-bio": {"experts": 1, "changed": 1, "failed": 0},
}


def test_every_job_does_its_work_and_run_again_finds_nothing(service, registry, run_job, redis_url):
    fill(service, redis_url)

    for name, result in RESULTS.items():
        run = run_job(registry.job(name), now=NOON)
        assert (run.state, run.result, run.error) == ("succeeded", result, None), name
        assert run.progress == result or not run.progress, name
    for name in RESULTS:
        again = run_job(registry.job(name), now=NOON).result
        done = {"deleted", "tasks", "items", "users", "inactive", "gone", "changed"} & set(again)
        assert not any(again[what] for what in done), name

    assert service.files() == set()
    assert service.count(FleaMarketItem) == service.count(TimeSlot) == 0
    assert service.count(Task, Task.files_deleted_at.is_(None)) == 0
    assert service.get(UserStatistics, "ann").tasks_posted == 2
    assert service.get(TaskExpert, "zoe").bio == "New here. Usually answers within 60 minutes."


def test_the_progress_of_a_sweep_can_be_seen(service, registry, run_job):
    service.file(service.task("completed", LONG_AGO))

    run = run_job(registry.job("cleanup-completed-task-files"), now=NOON)

    assert run.progress == {"tasks": 1, "files": 1, "failed": 0}


@pytest.mark.parametrize("name", NEED_THE_ROOT)
@pytest.mark.parametrize(
    ("root", "problem"), [("", "is not set"), ("/does/not/exist", "names a folder that does not exist")]
)
def test_without_a_usable_upload_root_a_job_fails_and_says_which_setting(
    service, registry, run_job, monkeypatch, name, root, problem
):
    task = service.task("completed", LONG_AGO)
    monkeypatch.setenv("ROTA_MAINTENANCE_UPLOAD_ROOT", root)
    MaintenanceSettings.forget()

    run = run_job(registry.job(name), now=NOON)

    assert run.state == "retrying"
    assert f"ROTA_MAINTENANCE_UPLOAD_ROOT {problem}" in run.error
    assert service.get(Task, task).files_deletion_began_at is None


def test_settings_reach_their_jobs(service, registry, run_job, monkeypatch):
    for number in range(5):
        service.write(f"flea_market/temp_1/{number}.jpg", modified_at=LONG_AGO)
    service.slot(NOON - timedelta(days=2))
    monkeypatch.setenv("ROTA_MAINTENANCE_TEMP_IMAGES_PER_RUN", "2")
    monkeypatch.setenv("ROTA_MAINTENANCE_TIME_SLOT_RETENTION_DAYS", "1.5")
    MaintenanceSettings.forget()

    assert run_job(registry.job("cleanup-unused-temp-images"), now=NOON).result["deleted"] == 2
    assert run_job(registry.job("cleanup-expired-time-slots"), now=NOON).result["deleted"] == 1


def test_a_worker_that_lost_its_lease_records_nothing(service, registry, executor, run_job):
    """Another worker gets the run before the first batch is committed, so the rows do not change."""
    tasks = [service.task("completed", LONG_AGO) for _ in range(3)]
    photos = [service.file(task) for task in tasks]
    job = registry.job("cleanup-completed-task-files")
    run_id = run_job.request(job)
    announce = file_journal.Deletion._announce

    def and_lose_the_lease(self, *args):
        with executor.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE rota_runs SET token = token + 1")
        return announce(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_journal.Deletion, "_announce", and_lose_the_lease)
        executor.execute(job, run_id, now=NOON)

    assert service.count(Task, Task.files_deletion_began_at.is_not(None)) == 0
    assert all(photo.exists() for photo in photos)


def test_a_database_user_without_rights_fails_clearly_and_touches_no_file(service, registry, run_job, database):
    photo = service.file(service.task("completed", LONG_AGO))
    with database.begin() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS reader")
        connection.exec_driver_sql("CREATE ROLE reader")
        connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        connection.exec_driver_sql("GRANT ALL ON rota_runs TO reader")

    def as_reader(run):
        run.session.connection().exec_driver_sql("SET LOCAL ROLE reader")
        return jobs.cleanup_completed_task_files(run)

    run = run_job(replace(jobs.cleanup_completed_task_files, function=as_reader), now=NOON)

    assert run.state == "retrying"
    assert "permission denied for table maintenance_" in run.error
    assert photo.exists()


def test_a_row_is_left_in_the_ledger_for_each(service, registry, run_job):
    run_job(registry.job("update-task-experts-bio"), now=NOON)

    assert service.count(RunRow, RunRow.job == "update-task-experts-bio") == 1


def test_files_younger_than_the_rules_stay_when_jobs_use_the_database_s_clock(service, registry, run_job):
    """Without a frozen clock, rows and files that were just made are not due."""
    now = datetime.now(UTC)
    photo = service.file(service.task("completed", now))
    image = service.write("flea_market/temp_1/a.jpg")
    old = service.write("flea_market/temp_1/b.jpg")
    age(old, now - timedelta(hours=25))

    for name in NEED_THE_ROOT:
        assert run_job(registry.job(name)).state == "succeeded"

    assert photo.exists()
    assert image.exists()
    assert not old.exists()
