"""I3, I7: an attempt whose lease is lost is interrupted at once, and delays no other run."""

import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import text

from core import database as databases
from core import job
from core.ledger.processes import Identity
from core.testing import RunJob
from core.worker import interruption
from core.worker.executor import Executor
from core.worker.heartbeat import Heartbeat
from tests.support.effects import leave
from tests.support.emitted import emitted
from tests.support.eventually import eventually

#: In seconds. No job of these tests ends by itself so soon.
SOON = 10
LOCKED = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND granted"


@pytest.fixture
def heartbeat(database):
    """Yield a heartbeat of this process."""
    beat = Heartbeat(database, Identity("worker", "test:1", "rota:lost"), every_seconds=0.05, lease=timedelta(hours=1))
    beat.start()
    assert beat.registered.wait(10)
    yield beat
    beat.stop()


@pytest.fixture
def run_job(database, heartbeat):
    """Return a function that runs jobs of the process with that heartbeat."""
    return RunJob(Executor(database, heartbeat, "test:1"))


def expire(ledger):
    """Let all leases expire, as after a stall of PostgreSQL."""
    assert ledger.do("UPDATE rota_processes SET expires_at = clock_timestamp() - interval '1 second'")


class Attempt(threading.Thread):
    """Makes an attempt of a run in a thread, beside the test."""

    def __init__(self, run_job, work):
        super().__init__(daemon=True)
        self.run_job, self.work, self.status = run_job, work, None
        self.run_id = run_job.request(work)
        self.start()

    def run(self):
        self.status = self.run_job.executor.execute(self.work, self.run_id)


def lock(run):
    """Take a lock that ends with the transaction. pg_locks shows it."""
    leave(run.session, "half")
    run.session.execute(text("SELECT pg_advisory_xact_lock(4711)"))


def spin(run):
    lock(run)
    while True:
        time.sleep(0.01)


def in_a_statement(run):
    lock(run)
    run.session.execute(text("SELECT pg_sleep(60)"))


def swallowing(run):
    try:
        spin(run)
    except BaseException:  # noqa: BLE001 — as a careless job does
        return "done"


@pytest.mark.parametrize("function", [spin, in_a_statement, swallowing])
def test_a_lost_attempt_ends_at_once_and_frees_its_locks(run_job, ledger, function, caplog):
    attempt = Attempt(run_job, job("work", max_retries=0)(function))
    eventually(lambda: ledger.value(LOCKED) == 1, within=SOON)
    expire(ledger)

    attempt.join(SOON)
    assert attempt.status == "lost"
    eventually(lambda: ledger.value(LOCKED) == 0, within=SOON)
    eventually(lambda: ledger.run(attempt.run_id).state == "retrying", within=SOON)
    row = ledger.run(attempt.run_id)
    assert (row.failures, row.crashes, row.reason) == (0, 0, "its worker lost PostgreSQL")
    assert [event.runs for event in emitted(caplog, "run.interrupted")] == [1]
    assert ledger.effects() == []


def test_the_next_attempt_does_not_wait_for_one_that_cannot_be_interrupted(run_job, ledger):
    """The thread continues its call into C, but the row locks of its transaction are released."""
    leave_it = threading.Event()

    def function(run):
        lock(run)
        if run.attempt == 1:
            time.sleep(3)  # one call, which cannot be interrupted
            leave_it.set()

    work = job("work", max_retries=0)(function)
    attempt = Attempt(run_job, work)
    eventually(lambda: ledger.value(LOCKED) == 1, within=SOON)
    expire(ledger)
    eventually(lambda: ledger.run(attempt.run_id).state == "retrying", within=SOON)

    assert run_job.executor.execute(work, attempt.run_id) == "succeeded"
    assert not leave_it.is_set()
    assert attempt.ident in interruption.outside_since()
    assert attempt.ident not in interruption.threads_in_jobs()
    attempt.join(SOON)
    assert attempt.status == "lost"
    assert (ledger.run(attempt.run_id).failures, ledger.run(attempt.run_id).crashes) == (0, 0)


def test_a_run_that_was_claimed_under_a_lost_lease_is_not_begun(run_job, ledger, heartbeat):
    ran = []
    work = job("work")(lambda run: ran.append(run))
    run_id = run_job.request(work)
    lease = run_job.executor.claims.claim(work, run_id)
    before = heartbeat.process_id
    expire(ledger)
    eventually(lambda: heartbeat.process_id not in {None, before}, within=SOON)

    class Message:
        """A message whose run was claimed ahead."""

        def __init__(self):
            self.lease = lease

        def worked(self, seconds):
            """Do nothing."""

        def end(self):
            """Do nothing."""

    assert run_job.executor.execute(work, run_id, carried=Message()) == "lost"
    assert ran == []


def test_only_the_attempt_itself_has_its_connection_cut(database, run_job, ledger):
    """If the connection has been returned to the pool meanwhile, another run may use it."""
    owners = [object(), object()]
    with database.connect() as connection:
        driver = connection.connection.driver_connection
        driver.own(owners[0])
        driver.disconnect(owners[1])
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    driver.disconnect(owners[0])
    with databases.autocommit(database) as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
    assert not driver.closed
