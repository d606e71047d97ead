"""The attempt of a cancelled run is interrupted, and the run ends only when its function has returned."""

import queue
import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import text

from core import database as databases
from core import job
from core.errors import Cancelled
from core.ledger import cancels
from core.ledger.processes import Identity
from core.observability.events import emit
from core.testing import RunJob
from core.worker import interruption
from core.worker.completions import Completions
from core.worker.executor import Executor
from core.worker.heartbeat import Heartbeat
from core.worker.last_resort import LastResort
from tests.support.effects import leave
from tests.support.emitted import emitted
from tests.support.eventually import eventually
from tests.support.racing import race

#: In seconds. No job of these tests ends by itself so soon.
SOON = 10
#: A heartbeat interval that is longer than the tests, so that only notifications report cancels.
NEVER_SECONDS = 1000.0


@pytest.fixture(autouse=True)
def _told(caplog):
    """Check every event that is logged."""
    caplog.set_level("INFO", "rota")


@pytest.fixture
def beating(database):
    """Yield a function that starts a heartbeat of this process with the given interval."""
    started = []

    def beating(every_seconds=NEVER_SECONDS):
        identity = Identity("worker", "test:1", "rota:cancelled")
        beat = Heartbeat(database, identity, every_seconds=every_seconds, lease=timedelta(hours=1))
        beat.start()
        started.append(beat)
        assert beat.registered.wait(SOON)
        return beat

    yield beating
    for beat in started:
        beat.stop()


@pytest.fixture
def run_job(database, beating):
    """Return a function that runs jobs of this process, which has such a heartbeat."""
    return RunJob(Executor(database, beating(), "test:1"))


def cancel(database, run_id):
    with databases.autocommit(database) as connection:
        (found,) = cancels.cancel(connection, [run_id], by="ann", reason="wrong list")
    return found.state


class Attempt(threading.Thread):
    """Makes an attempt of a run in a thread, beside the test."""

    def __init__(self, run_job, work, ledger):
        super().__init__(daemon=True)
        self.run_job, self.work, self.status = run_job, work, None
        self.run_id = run_job.request(work, key="a")
        self.start()
        eventually(lambda: ledger.effects() or ledger.value(AT_WORK), within=SOON)

    def run(self):
        self.status = self.run_job.executor.execute(self.work, self.run_id)


#: An advisory lock that shows whether a job of these tests has begun: the job takes it first.
AT_WORK = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = 4712 AND granted"


def begin(run):
    """Do half of the work, and show this by a lock in pg_locks."""
    leave(run.session, "half")
    run.session.execute(text("SELECT pg_advisory_xact_lock(4712)"))


def in_small_steps(run):
    begin(run)
    while True:
        time.sleep(0.01)


def in_a_statement(run):
    begin(run)
    run.session.execute(text("SELECT pg_sleep(60)"))


def swallowing(run):
    try:
        in_small_steps(run)
    except BaseException:  # noqa: BLE001 — as a careless job does
        return "done"


def raising_another(run):
    try:
        in_small_steps(run)
    except Cancelled:
        raise ValueError("in its own words") from None


@pytest.mark.parametrize("function", [in_small_steps, in_a_statement, swallowing, raising_another])
def test_a_cancelled_attempt_ends_at_once(database, run_job, ledger, function, caplog):
    attempt = Attempt(run_job, job("work")(function), ledger)

    assert cancel(database, attempt.run_id) == "running"
    attempt.join(SOON)

    assert attempt.status == "cancelled"
    row = ledger.run(attempt.run_id)
    assert (row.state, row.reason, row.error) == ("dead", "cancelled", "by ann: wrong list")
    assert (row.failures, row.crashes, row.process_id) == (0, 0, None)
    assert ledger.effects() == []
    assert [event.by for event in emitted(caplog, "run.cancelled")] == ["by ann: wrong list"]
    assert [event.run for event in emitted(caplog, "run.cancelling")] == [attempt.run_id]
    assert emitted(caplog, "run.failed") == emitted(caplog, "run.lease_lost") == []


def test_a_cancel_that_nobody_was_notified_of_is_noticed_at_the_next_beat(database, beating, ledger):
    run_job = RunJob(Executor(database, beating(every_seconds=0.1), "test:1"))
    attempt = Attempt(run_job, job("work")(in_small_steps), ledger)

    with databases.autocommit(database) as connection:  # as a cancel does, but without a notification
        connection.exec_driver_sql(
            "INSERT INTO rota_cancels (run_id, token, process_id, asked_by) "
            "SELECT id, token, process_id, 'ann' FROM rota_runs"
        )
    attempt.join(SOON)

    assert attempt.status == "cancelled"


def test_its_key_is_held_until_its_function_has_left(database, run_job, ledger):
    is_leaving, may_leave = threading.Event(), threading.Event()

    def function(run):
        try:
            in_small_steps(run)
        finally:
            is_leaving.set()
            may_leave.wait(SOON)

    work = job("work", overlap="wait")(function)
    attempt = Attempt(run_job, work, ledger)
    cancel(database, attempt.run_id)
    assert is_leaving.wait(SOON)

    other = run_job.request(work, key="a")
    assert run_job.executor.execute(work, other) == "waiting"
    assert ledger.run(attempt.run_id).state == "running"
    assert ledger.run(other).attempt == 0

    may_leave.set()
    attempt.join(SOON)
    assert ledger.run(attempt.run_id).reason == "cancelled"


def test_a_commit_before_the_interruption_is_refused(database, ledger, executor, run_job):
    """A process that has not noticed the cancel yet cannot commit either."""
    run_job = RunJob(executor)  # the process has no heartbeat
    work = job("work")(lambda run: (leave(run.session, "late"), cancel(database, run.id)))

    row = run_job(work)

    assert (row.state, row.reason) == ("dead", "cancelled")
    assert ledger.effects() == []


def test_a_checkpoint_is_refused_too(database, ledger, executor):
    def function(run):
        leave(run.session, "before")
        run.checkpoint()
        cancel(database, run.id)
        leave(run.session, "after")
        run.checkpoint()

    row = RunJob(executor)(job("work")(function))

    assert (row.state, row.reason) == ("dead", "cancelled")
    assert ledger.effects() == ["before"]


class Message:
    """A message whose run was claimed ahead, or whose success may be recorded later."""

    def __init__(self, lease=None):
        self.lease = lease
        self.ended = threading.Event()

    def worked(self, seconds):
        """Do nothing."""

    def end(self):
        """Acknowledge the message."""
        self.ended.set()


def test_a_success_that_waits_to_be_recorded_is_refused(database, beating, ledger, monkeypatch, caplog):
    monkeypatch.setattr(Completions, "gather_seconds", 60)  # no batch is recorded until the thread is stopped
    heartbeat = beating()
    completions = Completions(database, heartbeat)
    executor = Executor(database, heartbeat, "test:1", completions=completions)
    work, message = job("work", overlap="allow")(lambda run: "done"), Message()
    run_id = RunJob(executor).request(work)
    assert executor.execute(work, run_id, carried=message) == "recording"

    assert cancel(database, run_id) == "running"
    completions.stop()

    assert message.ended.wait(SOON)
    row = ledger.run(run_id)
    assert (row.state, row.reason, row.result) == ("dead", "cancelled", None)
    assert len(emitted(caplog, "run.cancelled")) == 1
    assert len(heartbeat.in_hand) == 0


def test_a_run_that_was_claimed_ahead_is_not_begun(database, run_job, ledger):
    ran = []
    work = job("work")(lambda run: ran.append(run))
    run_id = run_job.request(work)
    lease = run_job.executor.claims.claim(work, run_id)

    cancel(database, run_id)
    eventually(lambda: run_job.executor.claims.membership.in_hand.cancelled, within=SOON)

    assert run_job.executor.execute(work, run_id, carried=Message(lease)) == "cancelled"
    assert ran == []
    assert ledger.run(run_id).reason == "cancelled"


def test_a_thread_that_does_not_leave_is_named_and_its_process_ends(database, run_job, ledger, monkeypatch, caplog):
    """The run ends in the same step, and other runs of the process are released."""
    monkeypatch.setattr(interruption, "LEAVE_SECONDS", 0.5)
    ended = threading.Event()

    def end_process(self, why, *steps):
        emit(why)
        with databases.autocommit(self.engine) as connection:
            for step in steps:
                step(connection)
        ended.set()

    monkeypatch.setattr(LastResort, "end_process", end_process)

    def function(run):
        begin(run)
        while not ended.is_set():
            try:
                time.sleep(0.01)
            except BaseException:  # noqa: BLE001 — as a job does that never leaves
                continue

    attempt = Attempt(run_job, job("work")(function), ledger)
    cancel(database, attempt.run_id)

    assert ended.wait(SOON)
    row = ledger.run(attempt.run_id)
    assert (row.state, row.reason) == ("dead", "cancelled")
    (named,) = emitted(caplog, "run.not_leaving")
    assert "test_cancelled_attempts.py" in named.place
    assert len(emitted(caplog, "run.cancelled")) == 1
    attempt.join(SOON)
    assert ledger.effects() == []


def test_of_200_cancels_against_commits_none_that_found_its_run_running_has_its_effect(database, beating, ledger):
    run_job, begun, answers = RunJob(Executor(database, beating(), "test:1")), queue.SimpleQueue(), {}

    def function(run):
        begun.put(run.id)
        leave(run.session, str(run.id))

    work = job("work", overlap="allow", max_retries=0)(function)
    run_ids = [run_job.request(work) for _ in range(200)]

    def work_all():
        for run_id in run_ids:
            run_job.executor.execute(work, run_id)

    def cancel_all():
        for number in range(len(run_ids)):
            run_id = begun.get(timeout=SOON)
            time.sleep(number % 5 / 1000)  # before the commit, at the same time, or after it
            with databases.autocommit(database) as connection:
                answers[run_id] = [found.state for found in cancels.cancel(connection, [run_id], by="ann")]

    race(work_all, cancel_all)

    committed = {int(word) for word in ledger.effects()}
    cancelled = {run_id for run_id, states in answers.items() if states == ["running"]}
    assert committed.isdisjoint(cancelled)
    assert committed | cancelled == set(run_ids)
    assert committed
    assert cancelled
    ended = {row.id: (row.state, row.reason) for row in ledger.runs("work")}
    assert ended == {
        run_id: ("dead", "cancelled") if run_id in cancelled else ("succeeded", None) for run_id in run_ids
    }
