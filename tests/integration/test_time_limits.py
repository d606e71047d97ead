"""A job that runs too long is interrupted at its soft limit, in Python and in PostgreSQL, within 2 s."""

import threading
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import text

from core import TimeLimitExceeded, job
from core.jobs.job import Job
from core.observability import metrics
from core.observability.events import RunHardLimit
from core.worker import last_resort
from tests.support.effects import leave
from tests.support.emitted import emitted

LIMIT = timedelta(milliseconds=300)
WITHIN_SECONDS = LIMIT.total_seconds() + 2


def limited(function, **options):
    return job("work", soft_limit=LIMIT, **options)(function)


def run_for(run_job, work):
    """Run ``work``. Return the row of the run, and how long the run took."""
    began = time.monotonic()
    row = run_job(work)
    return row, time.monotonic() - began


def spin(run):
    leave(run.session, "half")
    while True:
        time.sleep(0.01)


def sleep_in_postgresql(run):
    leave(run.session, "half")
    run.session.execute(text("SELECT pg_sleep(60)"))


@pytest.mark.parametrize("function", [spin, sleep_in_postgresql])
def test_a_job_past_its_soft_limit_is_a_failed_attempt_and_its_work_undone(run_job, ledger, function):
    row, seconds = run_for(run_job, limited(function))

    assert LIMIT.total_seconds() <= seconds < WITHIN_SECONDS
    assert (row.state, row.reason) == ("retrying", "error")
    assert row.error.startswith("TimeLimitExceeded: soft limit of 0:00:00.300000 passed")
    assert ledger.effects() == []


def test_the_connection_of_an_interrupted_statement_is_usable_afterwards(run_job, ledger):
    for _ in range(10):
        row, _ = run_for(run_job, limited(sleep_in_postgresql, max_retries=0))
        assert row.error.startswith("TimeLimitExceeded")

    assert run_job(job("next")(lambda run: leave(run.session, "fine"))).state == "succeeded"
    assert ledger.effects() == ["fine"]


def test_a_job_that_swallows_every_exception_is_interrupted_all_the_same(run_job):
    def function(run):
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # noqa: BLE001 — as a careless job does
                continue

    row, seconds = run_for(run_job, limited(function))

    assert seconds < WITHIN_SECONDS
    assert row.error.startswith("TimeLimitExceeded")


def test_a_job_may_clean_up_and_checkpoint_what_it_has(run_job, ledger):
    def function(run):
        leave(run.session, "batch")
        try:
            while True:
                time.sleep(0.01)
        except TimeLimitExceeded:
            run.checkpoint({"done": 1})
            raise

    row, _ = run_for(run_job, limited(function))

    assert (row.state, row.progress) == ("retrying", {"done": 1})
    assert ledger.effects() == ["batch"]


def test_a_job_that_ends_in_time_is_left_alone(run_job):
    for _ in range(20):
        assert run_job(limited(lambda run: time.sleep(0.001))).state == "succeeded"


def test_a_job_that_ends_at_its_very_limit_has_one_outcome(run_job, ledger):
    edge = job("work", soft_limit=timedelta(milliseconds=20), max_retries=0, overlap="allow")(
        lambda run: time.sleep(0.0198)
    )

    states = {run_job(edge).state for _ in range(50)}

    assert states <= {"succeeded", "dead"}
    assert all(row.error.startswith("TimeLimitExceeded") for row in ledger.runs("work") if row.state == "dead")


class Exit:
    """Replaces the end of this process. The job waits for it, and then returns."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.came = threading.Event()

    def __call__(self, status: int) -> None:
        self.status = status
        self.came.set()

    def awaiting(self) -> Job:
        """Return a job that ignores its soft limit, and returns only after its hard limit has passed."""

        def function(run):
            with suppress(TimeLimitExceeded):
                self.came.wait(10)
            assert self.came.wait(10)

        return limited(function, hard_limit=2 * LIMIT, max_retries=0)


@pytest.fixture
def exit(monkeypatch):
    exit = Exit()
    monkeypatch.setattr(last_resort.os, "_exit", exit)
    monkeypatch.setattr(last_resort, "GIVE_UP_SECONDS", 1.0)  # for the timer, which is still running
    return exit


def test_a_hard_limit_is_recorded_and_ends_the_process_though_metrics_cannot_be_written(
    run_job, exit, monkeypatch, caplog
):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(metrics, "run_ended", full)

    row = run_job(exit.awaiting())

    assert exit.status == last_resort.HARD_LIMIT_EXIT
    assert (row.state, row.reason) == ("dead", "retries")
    assert row.error.startswith("TimeLimitExceeded: hard limit")
    assert emitted(caplog, "run.hard_limit") == [RunHardLimit(row.job, row.id, 2 * LIMIT.total_seconds())]


def test_a_hard_limit_keeps_where_the_job_stood(run_job, exit, ledger):
    row = run_job(exit.awaiting())

    kept = ledger.rows("SELECT * FROM rota_attempts WHERE run_id = :id", id=row.id)
    heading, first, line, *_ = kept[0].traceback.split("\n")
    assert heading == "Its thread stood here:"
    assert f'File "{__file__}"' in first
    assert line.strip() == "assert self.came.wait(10)" or "in function" in first


def test_a_hard_limit_ends_the_process_though_no_thread_can_be_had(run_job, exit, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)

    run_job(exit.awaiting())

    assert exit.status == last_resort.HARD_LIMIT_EXIT
