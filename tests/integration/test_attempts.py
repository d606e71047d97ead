"""Kept attempts: those that did not succeed, and a success after them, with the end of their logs."""

import io
import logging
from datetime import timedelta

import pytest
import structlog

from core import Later, enqueue, job
from core import database as databases
from core.ledger import attempts, cancels, processes, runs, unconnected
from core.ledger.models import State
from core.ledger.runs import Failure
from core.observability import log_tail, logs
from core.worker.heartbeat import FORGOTTEN_SECONDS
from tests.support.effects import leave

LATER = timedelta(minutes=5)


@pytest.fixture
def worker_log():
    """Handle log lines as a worker does."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers = [logging.StreamHandler(io.StringIO())]
    logs.configure("json")
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@job("work", max_retries=1, retry_delay=LATER)
def once_wrong(run):
    """Fail at the first attempt."""
    if run.attempt == 1:
        secret = "a local variable"  # noqa: F841
        run.log.info("imported", rows=3)
        logging.getLogger("a.library").warning("odd: %s", 7)
        raise RuntimeError("failed on purpose")
    run.log.info("imported", rows=4)


@pytest.fixture
def kept(ledger):
    """Return the kept attempts of a run, the oldest first."""
    return lambda run_id: ledger.rows("SELECT * FROM rota_attempts WHERE run_id = :id ORDER BY attempt", id=run_id)


def again(run_job, ledger, row, of=once_wrong):
    """Make the next attempt of the run now."""
    ledger.do("UPDATE rota_runs SET due_at = clock_timestamp() WHERE id = :id", id=row.id)
    run_job.executor.execute(of, row.id)
    return run_job.row(row.id)


class TestFailures:
    """Attempts that failed."""

    def test_a_failed_attempt_is_kept_with_its_error_its_traceback_and_the_end_of_its_log(
        self, run_job, kept, worker_log
    ):
        row = run_job(once_wrong)

        (attempt,) = kept(row.id)
        assert (attempt.attempt, attempt.outcome, attempt.reason) == (1, "failed", "error")
        assert attempt.error == "RuntimeError: failed on purpose" == row.error
        assert (attempt.started_at, attempt.worker) == (row.started_at, row.worker)
        assert attempt.started_at < attempt.ended_at
        lines = [line.partition("Z ")[2] for line in attempt.log.split("\n")]
        assert lines == ["imported rows=3", "warning: odd: 7"]

    def test_its_traceback_begins_in_the_jobs_function_and_has_no_local_variables(self, run_job, kept):
        row = run_job(once_wrong)

        first, *_, last = kept(row.id)[0].traceback.split("\n")[1:]
        assert f'File "{__file__}"' in first
        assert "in once_wrong" in first
        assert last == "RuntimeError: failed on purpose"
        assert "a local variable" not in kept(row.id)[0].traceback.replace('secret = "a local variable"', "")

    def test_arguments_that_do_not_fit_leave_a_traceback_too(self, run_job, kept, ledger):
        run_id = ledger.request(args='{"word": 1}')
        run_job.executor.execute(once_wrong, run_id)

        (attempt,) = kept(run_id)
        assert (attempt.outcome, attempt.reason) == ("failed", "arguments")
        assert attempt.traceback.startswith("Traceback")

    def test_the_last_attempt_of_a_dead_run_is_kept(self, run_job, kept):
        row = run_job(job("work", max_retries=0)(once_wrong.function))

        assert row.state == "dead"
        assert [(attempt.outcome, attempt.reason) for attempt in kept(row.id)] == [("failed", "retries")]

    def test_a_text_that_postgresql_cannot_store_is_replaced(self, run_job, kept, worker_log):
        @job("work")
        def nul(run):
            run.log.info("a\0b", odd="\udc80")
            raise RuntimeError("c\0d\udc80")

        (attempt,) = kept(run_job(nul).id)

        assert "c\N{REPLACEMENT CHARACTER}d?" in attempt.traceback
        assert "a\N{REPLACEMENT CHARACTER}b odd=?" in attempt.log

    def test_of_a_long_log_the_newest_lines_are_kept(self, run_job, kept, worker_log):
        @job("work")
        def talk(run):
            for number in range(200):
                run.log.info("line", number=number)
            run.log.info("x" * 100_000)
            raise RuntimeError("no")

        (attempt,) = kept(run_job(talk).id)

        lines = attempt.log.split("\n")
        assert len(lines) == log_tail.MOST_LINES
        assert lines[-2].endswith("line number=199")
        assert len(attempt.log) <= log_tail.LONGEST_TAIL

    def test_only_the_newest_attempts_are_kept(self, process, database, ledger, kept):
        run_id = ledger.request(attempt=attempts.MOST_KEPT + 5, state="retrying")
        ledger.do(
            "INSERT INTO rota_attempts (run_id, attempt, outcome) "
            "SELECT :id, n, 'failed' FROM generate_series(1, :most) AS n",
            id=run_id,
            most=attempts.MOST_KEPT + 5,
        )
        with databases.autocommit(database) as connection:
            assert runs.fail(connection, process.lease(database, run_id), Failure(State.RETRYING, "error", "boom"))

        numbers = [attempt.attempt for attempt in kept(run_id)]
        assert (len(numbers), numbers[0], numbers[-1]) == (attempts.MOST_KEPT, 7, attempts.MOST_KEPT + 6)

    def test_a_failure_that_is_not_recorded_keeps_no_attempt(self, process, database, ledger, kept):
        lease = process.lease(database, ledger.request())
        ledger.do("UPDATE rota_runs SET token = token + 1")
        with databases.autocommit(database) as connection:
            assert not runs.fail(connection, lease, Failure(State.RETRYING, "error", "late"))

        assert kept(lease.run_id) == []


class TestSuccess:
    """A success is kept only after an attempt that did not succeed."""

    def test_a_run_that_succeeds_first_time_has_none(self, run_job, ledger):
        run_job(job("work")(lambda run: leave(run.session, "done")))
        run_job(job("work")(lambda run: None))

        assert ledger.rows("SELECT * FROM rota_attempts") == []

    @pytest.mark.parametrize("uses_session", [True, False])
    def test_a_success_after_a_failure_is_kept(self, run_job, ledger, kept, worker_log, uses_session):
        @job("work", retry_delay=LATER)
        def second_time(run):
            once_wrong.function(run)
            if uses_session:
                leave(run.session, "done")

        row = again(run_job, ledger, run_job(second_time), second_time)

        assert row.state == "succeeded"
        failed, succeeded = kept(row.id)
        assert (failed.attempt, failed.outcome) == (1, "failed")
        assert (succeeded.attempt, succeeded.outcome, succeeded.error) == (2, "succeeded", None)
        assert succeeded.log.endswith("imported rows=4")
        assert (succeeded.started_at, succeeded.worker) == (row.started_at, row.worker)

    def test_of_successes_recorded_together_those_after_a_failure_are_kept(self, process, database, ledger, kept):
        first = process.lease(database, ledger.request(exclusive=False))
        later = process.lease(database, ledger.request(exclusive=False, state="retrying", attempt=1))
        with databases.autocommit(database) as connection:
            outcomes = [(first, "1"), (later, "2")]
            recorded = runs.succeed_many(connection, process.id, outcomes, {later.run_id: "its log"})

        assert recorded == {first.run_id: False, later.run_id: False}
        assert [ledger.run(run_id).result for run_id in (first.run_id, later.run_id)] == [1, 2]
        assert kept(first.run_id) == []
        assert [(each.attempt, each.outcome, each.log) for each in kept(later.run_id)] == [(2, "succeeded", "its log")]

    def test_a_success_that_is_rolled_back_keeps_no_attempt(self, run_job, ledger, kept):
        @job("work", retry_delay=LATER, max_retries=5)
        def refused_at_commit(run):
            once_wrong.function(run)
            run.session.connection().exec_driver_sql(
                "CREATE TEMP TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO once VALUES (1), (1)"
            )

        row = again(run_job, ledger, run_job(refused_at_commit), refused_at_commit)

        assert row.state == "retrying"
        assert [(attempt.attempt, attempt.outcome) for attempt in kept(row.id)] == [(1, "failed"), (2, "failed")]


class TestUncounted:
    """Attempts that are not counted, since the job did not cause their end."""

    def test_the_attempt_of_a_dead_process_is_kept_as_crashed(self, process, database, ledger, kept):
        lease = process.lease(database, ledger.request())
        ledger.do("DELETE FROM rota_processes WHERE id = :id", id=process.id)
        with databases.autocommit(database) as connection:
            processes.recover(connection, 3)

        (attempt,) = kept(lease.run_id)
        assert (attempt.attempt, attempt.outcome, attempt.reason) == (1, "crashed", "worker died")
        assert attempt.error == ledger.run(lease.run_id).error
        assert attempt.worker == "test:1"

    def test_a_released_attempt_is_kept_without_the_error_of_the_one_before(self, process, database, ledger, kept):
        lease = process.lease(database, ledger.request(state="retrying", attempt=1, error="an old one"))
        with databases.autocommit(database) as connection:
            (found,) = runs.release(connection, process.id, "its worker was stopped")
        assert (found.run_id, found.state) == (lease.run_id, "retrying")

        (attempt,) = kept(lease.run_id)
        told = (attempt.attempt, attempt.outcome, attempt.reason, attempt.error)
        assert told == (2, "released", "its worker was stopped", None)

    def test_an_attempt_that_its_process_did_not_know_of_is_kept(self, process, database, ledger, kept):
        lease = process.lease(database, ledger.request())
        ledger.do("UPDATE rota_runs SET started_at = started_at - interval '1 hour'")
        age = timedelta(seconds=FORGOTTEN_SECONDS)
        with databases.autocommit(database) as connection:
            (found,) = runs.release_forgotten(connection, process.id, [], age, "lost sight of")

        assert (found.run_id, found.job, found.state) == (lease.run_id, "work", "retrying")
        assert [(each.outcome, each.reason) for each in kept(lease.run_id)] == [("released", "lost sight of")]

    def test_of_attempts_without_a_connection_the_last_is_kept_under_the_number_that_they_share(
        self, process, database, ledger, kept
    ):
        run_id = ledger.request()
        for error in ("first", "second"):
            lease = process.lease(database, run_id)
            with databases.autocommit(database) as connection:
                assert unconnected.release(connection, lease, error) == "retrying"
            ledger.do("UPDATE rota_runs SET due_at = clock_timestamp()")

        (attempt,) = kept(run_id)
        assert (attempt.attempt, attempt.outcome, attempt.reason) == (1, "released", "no connection")
        assert attempt.error.endswith(": second")

    def test_a_cancelled_attempt_is_kept_with_the_end_of_its_log(self, run_job, database, kept, worker_log):
        @job("work")
        def cancelled(run):
            run.log.info("begun")
            with databases.autocommit(database) as connection:
                cancels.cancel(connection, [run.id], by="ann", reason="wrong list")

        row = run_job(cancelled)

        (attempt,) = kept(row.id)
        assert (attempt.outcome, attempt.reason, attempt.error) == ("cancelled", "cancelled", "by ann: wrong list")
        assert attempt.log.endswith("begun")

    def test_an_attempt_that_postponed_its_run_is_kept_with_the_end_of_its_log(self, run_job, kept, worker_log):
        @job("work")
        def not_now(run):
            run.log.info("asked the server")
            raise Later(in_=LATER, reason="it is busy")

        row = run_job(not_now)

        (attempt,) = kept(row.id)
        assert (attempt.attempt, attempt.outcome, attempt.reason, attempt.error) == (1, "later", "later", row.error)
        assert attempt.log.endswith("asked the server")


class TestParents:
    """A run records which run has enqueued it."""

    @pytest.mark.parametrize(
        "ask", [lambda run: run.enqueue("work"), lambda run: enqueue(run.session, "work")], ids=["run", "session"]
    )
    def test_a_run_enqueued_in_a_job_knows_which_run_did_it(self, run_job, ledger, use_jobs, ask):
        asking = job("ask")(lambda run: {"id": ask(run)})
        use_jobs(asking, once_wrong)

        row = run_job(asking)

        assert ledger.run(row.result["id"]).parent_id == row.id
        assert ledger.run(row.id).parent_id is None


def test_retention_removes_attempts_with_their_runs(run_job, ledger, database, kept):
    from core import upkeep

    old = run_job(job("work", max_retries=0)(once_wrong.function))
    young = run_job(job("work", max_retries=0)(once_wrong.function))
    ledger.do("UPDATE rota_runs SET finished_at = now() - interval '400 days' WHERE id = :id", id=old.id)

    assert run_job(upkeep.prune_runs).result["deleted"] == 1
    assert (len(kept(old.id)), len(kept(young.id))) == (0, 1)
