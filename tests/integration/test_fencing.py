"""I3: each commit of a run checks the run's lease in the committing transaction."""

from contextlib import suppress

import pytest
from sqlalchemy import text

from core import database as databases
from core import job
from core.errors import LeaseLost
from core.observability.events import RunConflict
from tests.support.effects import leave
from tests.support.emitted import emitted

LOSSES = {
    "claimed by another": "UPDATE rota_runs SET token = nextval('rota_tokens')",
    "handed on": "UPDATE rota_runs SET state = 'retrying', process_id = NULL",
    "ended by hand": "UPDATE rota_runs SET state = 'dead', finished_at = clock_timestamp()",
}
#: The lease has expired, but no other process has been given the run.
LATE = {
    "process reaped": "DELETE FROM rota_processes",
    "process expired": "UPDATE rota_processes SET expires_at = clock_timestamp()",
}
ISOLATIONS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def once(function, **options):
    return job("work", **options)(function)


class TestALostLease:
    """A worker that has lost its lease can commit nothing, in any way."""

    @every_loss
    def test_a_job_that_returns_after_losing_its_lease_stores_nothing(self, run_job, ledger, loss):
        def function(run):
            leave(run.session, "late")
            ledger.do(loss)

        row = run_job(once(function))

        assert row.state in {"running", "retrying", "dead"}
        assert ledger.effects() == []

    @every_loss
    def test_a_job_without_work_of_its_own_does_not_succeed_after_losing_its_lease(self, run_job, ledger, loss):
        assert run_job(once(lambda run: ledger.do(loss))).state in {"running", "retrying", "dead"}

    @every_loss
    def test_a_job_that_commits_its_session_itself_is_fenced(self, run_job, ledger, loss):
        def function(run):
            leave(run.session, "late")
            ledger.do(loss)
            with pytest.raises(LeaseLost):
                run.session.commit()
            run.session.rollback()

        row = run_job(once(function))

        assert row.state != "succeeded"
        assert ledger.effects() == []

    @every_loss
    @pytest.mark.parametrize("progress", [None, {"done": 1}])
    def test_a_checkpoint_is_fenced(self, run_job, ledger, loss, progress):
        def function(run):
            leave(run.session, "late")
            ledger.do(loss)
            run.checkpoint(progress)
            leave(run.session, "later still")

        row = run_job(once(function))

        assert (row.state, row.progress) in [("running", None), ("retrying", None), ("dead", None)]
        assert ledger.effects() == []

    def test_a_commit_after_a_savepoint_is_fenced(self, run_job, ledger):
        def function(run):
            with run.session.begin_nested():
                leave(run.session, "late")
            ledger.do(LOSSES["claimed by another"])
            run.session.commit()

        assert run_job(once(function)).state == "running"
        assert ledger.effects() == []

    def test_a_commit_from_within_a_savepoint_is_fenced(self, run_job, ledger):
        def function(run):
            run.session.begin_nested()
            leave(run.session, "late")
            ledger.do(LOSSES["claimed by another"])
            run.session.commit()

        assert run_job(once(function)).state == "running"
        assert ledger.effects() == []

    def test_the_second_of_two_checkpoints_is_fenced_as_the_first(self, run_job, ledger):
        def function(run):
            leave(run.session, "in time")
            run.checkpoint({"done": 1})
            ledger.do(LOSSES["claimed by another"])
            leave(run.session, "late")
            run.checkpoint()

        assert run_job(once(function)).progress == {"done": 1}
        assert ledger.effects() == ["in time"]

    def test_a_refused_commit_can_be_repeated_no_more_than_made(self, run_job, ledger):
        def function(run):
            leave(run.session, "late")
            ledger.do(LOSSES["claimed by another"])
            for _ in range(3):
                with suppress(Exception):
                    run.session.commit()

        assert run_job(once(function)).state == "running"
        assert ledger.effects() == []

    def test_a_failure_is_not_recorded_by_who_lost_the_lease(self, run_job, ledger):
        def function(run):
            ledger.do(LOSSES["claimed by another"])
            raise RuntimeError("late")

        row = run_job(once(function))

        assert (row.state, row.failures, row.error) == ("running", 0, None)


class TestAGoodLease:
    """Commits in the middle of a job."""

    def test_a_job_that_commits_its_session_itself_goes_on(self, run_job, ledger):
        def function(run):
            leave(run.session, "first")
            run.session.commit()
            leave(run.session, "second")

        assert run_job(once(function)).state == "succeeded"
        assert ledger.effects() == ["first", "second"]

    def test_progress_is_logged_but_not_at_every_checkpoint(self, run_job, monkeypatch, capsys):
        def function(run):
            run.checkpoint({"done": 1})
            monkeypatch.setattr("core.middleware.db_session.PROGRESS_SECONDS", 0)
            run.checkpoint({"done": 2})
            run.checkpoint()

        run_job(once(function))

        told = [line for line in capsys.readouterr().out.splitlines() if "run.progress" in line]
        assert len(told) == 1
        assert "{'done': 2}" in told[0]

    @pytest.mark.parametrize(
        ("progress", "said"),
        [
            ({"last": "a\0secret"}, "its progress has a NUL character, which PostgreSQL cannot store"),
            ({"last": "a\ud800secret"}, "its progress cannot be written as JSON: surrogates not allowed"),
            ({"share": float("nan")}, "its progress cannot be written as JSON: "),
        ],
    )
    def test_progress_that_cannot_be_stored_is_refused_without_repeating_it(self, run_job, ledger, progress, said):
        def function(run):
            leave(run.session, "batch")
            run.checkpoint(progress)

        run = run_job(once(function))

        assert (run.state, ledger.effects()) == ("retrying", [])
        assert f"BadProgress: job {run.job!r}: {said}" in run.error
        assert "secret" not in run.error

    def test_progress_with_characters_beyond_the_first_plane_is_kept(self, run_job):
        assert run_job(once(lambda run: run.checkpoint({"last": "🙂 \\ud800"}))).progress == {"last": "🙂 \\ud800"}

    def test_a_checkpoint_commits_a_batch_and_its_progress_at_once(self, run_job, ledger):
        seen = []

        def function(run):
            leave(run.session, "batch")
            run.checkpoint({"done": 1})
            seen.append((ledger.effects(), ledger.run(run.id).progress, ledger.run(run.id).state))

        assert run_job(once(function)).state == "succeeded"
        assert seen == [(["batch"], {"done": 1}, "running")]

    def test_a_failure_after_a_checkpoint_keeps_the_earlier_batches_alone(self, run_job, ledger):
        def function(run):
            for number in range(3):
                leave(run.session, f"batch {number}")
                run.checkpoint({"done": number + 1})
            leave(run.session, "half a batch")
            raise RuntimeError("in the fourth")

        row = run_job(once(function))

        assert (row.state, row.progress) == ("retrying", {"done": 3})
        assert ledger.effects() == ["batch 0", "batch 1", "batch 2"]

    def test_a_checkpoint_with_nothing_to_commit_is_allowed(self, run_job):
        def function(run):
            run.checkpoint()
            run.checkpoint({"nothing": True})
            run.checkpoint()

        row = run_job(once(function))

        assert (row.state, row.progress) == ("succeeded", {"nothing": True})

    def test_progress_that_postgresql_cannot_store_is_a_failed_attempt(self, run_job):
        row = run_job(once(lambda run: run.checkpoint({"nul": "\0"})))

        assert (row.state, row.reason) == ("retrying", "error")


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
class TestALateLease:
    """While no other process has been given the run, an expired lease still commits, whatever the snapshot of the
    transaction shows.
    """

    def test_the_job_commits(self, run_job, ledger, late, isolation):
        def function(run):
            leave(run.session, "late")
            ledger.do(late)

        row = run_job(once(function, isolation=isolation))

        assert row.state == "succeeded"
        assert ledger.effects() == ["late"]

    def test_a_checkpoint_commits(self, run_job, ledger, late, isolation):
        def function(run):
            leave(run.session, "late")
            ledger.do(late)
            run.checkpoint({"done": 1})
            leave(run.session, "later still")

        row = run_job(once(function, isolation=isolation))

        assert (row.state, row.progress) == ("succeeded", {"done": 1})
        assert ledger.effects() == ["late", "later still"]


class TestIsolation:
    """A job chooses the isolation level of its transactions. Rota's own statements have a fixed level."""

    @pytest.mark.parametrize("isolation", ISOLATIONS)
    def test_each_transaction_of_a_job_is_isolated_as_it_says(self, run_job, isolation):
        seen = []

        def function(run):
            for _ in range(2):
                seen.append(run.session.scalar(text("SHOW transaction_isolation")))
                run.checkpoint()

        assert run_job(once(function, isolation=isolation)).state == "succeeded"
        assert seen == [isolation.lower()] * 2

    def test_one_that_a_statement_chooses_commits_late(self, run_job, ledger):
        def function(run):
            run.session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
            leave(run.session, "late")
            ledger.do(LATE["process expired"])

        assert run_job(once(function)).state == "succeeded"

    def test_one_that_sqlalchemy_chooses_commits_late(self, run_job, ledger):
        def function(run):
            run.session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            leave(run.session, "late")
            ledger.do(LATE["process expired"])

        assert run_job(once(function, isolation="SERIALIZABLE")).state == "succeeded"

    @pytest.mark.parametrize("isolation", ISOLATIONS)
    @pytest.mark.parametrize("progress", [None, {"done": 1}])
    def test_a_lease_that_is_renewed_behind_the_jobs_snapshot_is_good(self, run_job, ledger, isolation, progress):
        """The snapshot shows the lease before it was renewed, which has expired when the transaction commits."""

        def function(run):
            ledger.do("UPDATE rota_processes SET expires_at = clock_timestamp() + interval '0.2 seconds'")
            leave(run.session, "long work")
            ledger.do("UPDATE rota_processes SET expires_at = clock_timestamp() + interval '1 hour'")
            run.session.execute(text("SELECT pg_sleep(0.4)"))
            if progress:
                run.checkpoint(progress)

        row = run_job(once(function, isolation=isolation))

        assert (row.state, row.progress) == ("succeeded", progress)
        assert ledger.effects() == ["long work"]

    @pytest.mark.parametrize("isolation", ISOLATIONS)
    def test_a_run_given_to_another_is_lost(self, run_job, ledger, isolation):
        def function(run):
            leave(run.session, "late")
            ledger.do(LOSSES["claimed by another"])

        assert run_job(once(function, isolation=isolation)).state == "running"
        assert ledger.effects() == []

    def test_the_databases_default_is_a_jobs_and_not_ours(self, run_job, ledger, database):
        name = database.url.database
        ledger.do(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
        databases.dispose(database)
        seen = []
        try:
            row = run_job(once(lambda run: seen.append(run.session.scalar(text("SHOW transaction_isolation")))))
            with databases.autocommit(database) as connection:
                seen.append(connection.scalar(text("SHOW transaction_isolation")))
            with database.begin() as connection:
                seen.append(connection.scalar(text("SHOW transaction_isolation")))
        finally:
            ledger.do(f"ALTER DATABASE {name} RESET default_transaction_isolation")
            databases.dispose(database)

        assert row.state == "succeeded"
        assert seen == ["repeatable read", "read committed", "read committed"]


class TestConflicts:
    """If PostgreSQL aborts a transaction because of a conflict, the attempt is repeated at once, uncounted, a few
    times.
    """

    @pytest.fixture
    def counter(self, ledger):
        """Make a row that other transactions change."""
        ledger.do("INSERT INTO test_effects VALUES ('counter')")
        return lambda: ledger.do("UPDATE test_effects SET word = word || '+'")

    @pytest.mark.parametrize(("times", "state", "failures"), [(3, "succeeded", 0), (4, "retrying", 1)])
    def test_a_conflict_is_no_failed_attempt_unless_it_goes_on(self, run_job, counter, times, state, failures, caplog):
        caplog.set_level("INFO", "rota")
        tries = []

        def function(run):
            tries.append(run.attempt)
            run.session.execute(text("SELECT 1 FROM test_effects")).all()
            if len(tries) <= times:
                counter()
            run.session.execute(text("UPDATE test_effects SET word = 'ours'"))

        row = run_job(once(function, isolation="REPEATABLE READ"))

        assert (row.state, row.failures, row.attempt) == (state, failures, 1)
        assert tries == [1] * 4
        error = "could not serialize access due to concurrent update"
        assert emitted(caplog, "run.conflict") == [RunConflict("work", row.id, error)] * 3

    def test_a_conflict_of_a_run_that_another_has_is_not_repeated(self, run_job, counter, ledger):
        tries = []

        def function(run):
            tries.append(run.attempt)
            run.session.execute(text("SELECT 1 FROM test_effects")).all()
            counter()
            ledger.do(LOSSES["claimed by another"])
            run.session.execute(text("UPDATE test_effects SET word = 'ours'"))

        assert run_job(once(function, isolation="REPEATABLE READ")).state == "running"
        assert tries == [1]


class TestSearchPath:
    """The ledger's tables are found with any search_path that a job has set."""

    @pytest.mark.parametrize("local", ["", "LOCAL"])
    def test_a_job_that_sets_its_search_path_checkpoints_enqueues_and_succeeds(self, run_job, use_jobs, ledger, local):
        def function(run):
            leave(run.session, "work")
            run.session.execute(text(f"SET {local} search_path TO pg_catalog"))
            run.checkpoint({"done": 1})
            run.session.execute(text(f"SET {local} search_path TO pg_catalog"))
            run.enqueue("work", key="next")

        work = once(function)
        use_jobs(work)
        row = run_job(work)

        assert (row.state, row.progress) == ("succeeded", {"done": 1})
        assert ledger.states("work") == ["succeeded", "queued"]

    def test_a_table_of_the_same_name_in_its_path_is_not_taken_for_the_ledgers(self, run_job, ledger):
        def function(run):
            run.session.execute(text("CREATE TEMPORARY TABLE rota_runs (LIKE rota_runs) ON COMMIT DROP"))

        assert run_job(once(function)).state == "succeeded"
