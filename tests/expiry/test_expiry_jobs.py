"""The plugin in Rota: its jobs are those of the catalogue, and run through the real claim and commit."""

import tracemalloc
from collections import Counter
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from expiry_world import BEFORE, COUPONS, NOON, POINTS, SUBJECTS, TASKS, Subject
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from core import every
from core.plugins import loading
from core.testing import RunJob
from plugins.expiry import Expiry, sweeps
from plugins.expiry.models import Base
from tests.support.emitted import emitted
from tests.support.racing import race

MINUTE = timedelta(minutes=1)
LONDON = ZoneInfo("Europe/London")
CATALOGUE = {
    "cancel-expired-tasks": every(seconds=60),
    "check-expired-coupons": every(minutes=15),
    "check-expired-invitation-codes": every(minutes=15),
    "check-expired-points": every(hours=1),
}
#: Days of 23 and 25 hours: the clocks go forward at 01:00 UTC, and back at 01:00 UTC.
CHANGES = [datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)]

every_job = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.job.name)


@pytest.fixture(scope="module")
def registry():
    return loading.load([EntryPoint("expiry", "plugins.expiry:Expiry", "rota.plugins")])


def test_the_jobs_are_those_of_the_catalogue(registry):
    assert not list(registry.broken())

    assert {job.name: job.schedule for job in registry if job.queue == "expiry"} == CATALOGUE
    for name in CATALOGUE:
        job = registry.job(name)
        assert (job.max_retries, job.retry_delay, job.backoff) == (3, MINUTE, "fixed")
        assert (job.soft_limit, job.hard_limit) == (25 * MINUTE, 30 * MINUTE)
        assert (job.overlap, job.ledger) == ("skip", True)


def test_no_retired_job_is_among_them(registry):
    retired = {"auto-complete-expired-time-slot-tasks", "check-and-end-activities", "auto-generate-future-time-slots"}

    assert not retired & {job.name for job in registry}


def test_the_migrations_are_where_the_plugin_says():
    assert [path.name for path in Expiry().register_migrations().glob("0*.py")] == [
        "0001_what_ends.py",
        "0002_references.py",
    ]


@pytest.mark.parametrize("midnight", CHANGES, ids=["forward", "back"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_the_nights_the_clocks_change_leave_no_gap_and_double_nothing(registry, name, midnight):
    schedule = registry.job(name).schedule
    slots = list(schedule.between(midnight - MINUTE, midnight + timedelta(hours=4)))

    gaps = {later - earlier for earlier, later in pairwise(slots)}

    assert gaps == {schedule.interval}
    assert len(slots) == timedelta(hours=4) // schedule.interval + 1
    # In London, too, the hourly job is due once in each hour.
    hours = Counter(slot.astimezone(LONDON).strftime("%H") for slot in slots if slot.astimezone(LONDON).minute == 0)
    assert ("01" in hours) == (midnight.month == 10)


@pytest.mark.parametrize("midnight", CHANGES, ids=["forward", "back"])
@every_job
def test_rows_that_end_in_a_night_the_clocks_change_end_at_their_instant(subject: Subject, session, midnight):
    local = [datetime(midnight.year, midnight.month, midnight.day, 1, 30, fold=fold, tzinfo=LONDON) for fold in (0, 1)]
    for number, end in enumerate(local):
        subject.make(session, number, end)
    session.commit()
    first, second = sorted(end.astimezone(UTC) for end in local)

    assert subject.sweep(session, first)[subject.word] == 1
    assert subject.sweep(session, second)[subject.word] == 1


@every_job
def test_a_run_tells_what_it_did(subject: Subject, session: Session, run_job: RunJob):
    subject.fill(session, 3)

    run = run_job(subject.job, now=NOON)

    assert (run.state, run.result[subject.word]) == ("succeeded", 3)
    assert run.progress[subject.word] == 3
    assert subject.count(session) == 3
    assert run_job(subject.job, now=NOON).result[subject.word] == 0


@every_job
def test_four_workers_at_once_end_each_row_once(subject: Subject, session: Session, run_job: RunJob, check_invariants):
    subject.fill(session, 200)
    run_ids = [run_job.request(subject.job) for _ in range(4)]

    race(*[lambda run_id=run_id: run_job.executor.execute(subject.job, run_id, now=NOON) for run_id in run_ids])

    rows = [run_job.row(run_id) for run_id in run_ids]
    assert {row.state for row in rows} <= {"succeeded", "queued"}
    assert sum(row.result[subject.word] for row in rows if row.state == "succeeded") == 200
    assert subject.count(session) == 200
    check_invariants()


@every_job
def test_a_run_whose_connection_is_killed_between_batches_is_tried_again_and_ends_the_rest(
    subject: Subject, session: Session, database: Engine, run_job: RunJob, monkeypatch, do, check_invariants
):
    subject.fill(session, 10)
    monkeypatch.setattr(sweeps, "SLICE", 4)
    whole, read = [], sweeps.read_slice

    def killed_before_the_second_slice(*args):
        if len(whole) == 1:
            pid = args[0].scalar(text("SELECT pg_backend_pid()"))
            do("SELECT pg_terminate_backend(:pid)", pid=pid)
        whole.append(1)
        return read(*args)

    monkeypatch.setattr(sweeps, "read_slice", killed_before_the_second_slice)
    killed = run_job(subject.job, now=NOON)

    assert (killed.state, killed.progress[subject.word]) == ("retrying", 4)
    assert subject.count(session) == 4
    session.rollback()
    check_invariants()
    do("UPDATE rota_runs SET due_at = clock_timestamp()")
    assert run_job.executor.execute(subject.job, killed.id, now=NOON) == "succeeded"
    again = run_job.row(killed.id)
    assert (again.attempt, again.result[subject.word]) == (2, 6)
    assert subject.count(session) == 10
    check_invariants()


def test_a_worker_that_lost_its_lease_ends_nothing_more(session: Session, run_job: RunJob, monkeypatch, do):
    COUPONS.fill(session, 10)
    monkeypatch.setattr(sweeps, "SLICE", 4)
    read, slices = sweeps.read_slice, []

    def lose_the_lease(*args):
        slices.append(1)
        if len(slices) == 2:
            do("UPDATE rota_runs SET token = token + 1")
        return read(*args)

    monkeypatch.setattr(sweeps, "read_slice", lose_the_lease)
    run_job(COUPONS.job, now=NOON)

    assert COUPONS.count(session) == 4


def test_an_owner_is_told_live_when_the_batch_is_committed(session: Session, run_job: RunJob, published):
    (task_id,) = TASKS.fill(session, 1)

    run_job(TASKS.job, now=NOON)

    assert [(channel, message["task_id"]) for channel, message in published] == [
        ("expiry:notifications:owner-0", task_id)
    ]


def test_broken_rows_are_told_in_the_result(session: Session, run_job: RunJob, do, caplog):
    POINTS.fill(session, 3)
    do("UPDATE expiry_point_balances SET points = 0 WHERE user_id = 'user-1'")

    run = run_job(POINTS.job, now=NOON)

    assert run.result == {"expired": 2, "left": 0, "broken": 1, "points": 4}
    [refused] = emitted(caplog, "sweep.rows_refused")
    assert (refused.table, refused.rows, refused.ids) == ("expiry_point_lots", 1, "2")


@pytest.mark.slow
def test_what_a_sweep_keeps_in_memory_does_not_grow_with_the_table(session: Session, do, monkeypatch):
    monkeypatch.setattr(sweeps, "SLICE", 2000)
    peaks = []
    for rows in (4000, 40_000):
        do(f"TRUNCATE {', '.join(Base.metadata.tables)}")
        do(
            """INSERT INTO expiry_coupons (code, user_id, ends_at)
               SELECT n, '', CAST(:at AS timestamptz) FROM generate_series(1, :rows) AS n""",
            at=BEFORE,
            rows=rows,
        )
        tracemalloc.start()
        assert COUPONS.sweep(session, batch=1000)["expired"] == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < 1.5 * peaks[0]
