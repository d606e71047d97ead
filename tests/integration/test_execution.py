"""The outcome of a run: success in the job's own transaction, a failed attempt and its retry, or the end."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core import database as databases
from core import every, job
from core.ledger.claims import Verdict
from core.ledger.models import State
from core.observability import metrics
from core.observability.events import RunNotClaimedAhead, RunNotReleased, RunSkipped
from core.testing import Member, RunJob
from core.worker.executor import Executor
from tests.support.effects import leave
from tests.support.emitted import emitted


class Base(DeclarativeBase):
    """The metadata of the tests' tables."""


class Effect(Base):
    __tablename__ = "test_effects"
    word: Mapped[str] = mapped_column(primary_key=True)


@job("work", retry_delay=timedelta(minutes=5))
def work(run, word: str = "done"):
    leave(run.session, word)
    return {"left": word}


@job("fail", max_retries=2, retry_delay=timedelta(minutes=5))
def fail(run):
    leave(run.session, "half")
    raise RuntimeError("failed on purpose")


def once(function, **options):
    """Return a job of that function."""
    return job("work", **options)(function)


def retry_now(ledger, run_id):
    ledger.do("UPDATE rota_runs SET due_at = clock_timestamp() WHERE id = :id", id=run_id)


class TestSuccess:
    """I2: the work and the state are committed in one transaction."""

    def test_success_is_recorded_with_the_result_and_the_work(self, run_job, ledger):
        row = run_job(work)

        assert (row.state, row.result, row.attempt, row.failures) == ("succeeded", {"left": "done"}, 1, 0)
        assert (row.process_id, row.error, row.reason) == (None, None, None)
        assert row.queued_at <= row.started_at <= row.finished_at
        assert ledger.effects() == ["done"]

    def test_a_connection_cut_before_the_commit_leaves_neither_work_nor_success(self, run_job, ledger):
        def function(run):
            leave(run.session, "half")
            ledger.value("SELECT pg_terminate_backend(:pid)", pid=pid(run))

        row = run_job(once(function))

        assert (row.state, row.reason, row.attempt, row.failures) == ("retrying", "error", 1, 1)
        assert ledger.effects() == []

    def test_a_success_whose_connection_was_cut_is_recorded_over_another(self, run_job, database, ledger, caplog):
        """The ledger's own connection was cut, which undoes no work. So the attempt has not failed."""

        def function(run):
            with databases.autocommit(database) as connection:
                cut = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            ledger.value("SELECT pg_terminate_backend(:pid)", pid=cut)

        row = run_job(once(function, max_retries=0))

        assert (row.state, row.attempt, row.failures) == ("succeeded", 1, 0)
        assert "run.not_recorded" in caplog.text

    def test_the_job_sees_the_databases_time_unless_a_test_says_another(self, run_job, ledger):
        seen = []
        before = ledger.value("SELECT clock_timestamp()")
        run_job(once(lambda run: seen.append(run.now)))
        run_job(once(lambda run: seen.append(run.now)), now=datetime(2026, 3, 1, tzinfo=UTC))

        assert before <= seen[0] <= ledger.value("SELECT clock_timestamp()")
        assert seen[1] == datetime(2026, 3, 1, tzinfo=UTC)

    def test_a_job_that_never_uses_its_session_succeeds(self, run_job):
        row = run_job(once(lambda run: {"ok": True}))

        assert (row.state, row.result) == ("succeeded", {"ok": True})

    def test_what_a_job_adds_to_its_session_is_stored_without_a_flush(self, run_job, ledger):
        assert run_job(once(lambda run: run.session.add(Effect(word="added")))).state == "succeeded"
        assert ledger.effects() == ["added"]

    def test_no_result_is_stored_as_none(self, run_job, ledger):
        row = run_job(once(lambda run: None))

        assert ledger.value("SELECT result IS NULL FROM rota_runs WHERE id = :id", id=row.id)

    def test_success_after_a_failure_clears_the_error(self, run_job, ledger):
        attempts = []

        def function(run):
            attempts.append(run.attempt)
            if run.attempt == 1:
                raise RuntimeError("first")

        flaky = once(function)
        row = run_job(flaky)
        retry_now(ledger, row.id)
        run_job.executor.execute(flaky, row.id)

        row = run_job.row(row.id)
        assert (row.state, row.reason, row.error, row.attempt, row.failures) == ("succeeded", None, None, 2, 1)
        assert attempts == [1, 2]

    def test_a_slot_whose_rival_is_at_work_is_skipped_and_said_to_be(self, run_job, ledger, caplog):
        caplog.set_level("INFO", "rota")
        skipped = []

        def function(run):
            skipped.append(ledger.request(slot=datetime(2026, 1, 1, tzinfo=UTC)))
            assert run_job.executor.execute(rival, skipped[0]) == Verdict.SKIPPED

        rival = once(function, schedule=every(minutes=1))

        assert run_job(rival).state == "succeeded"
        assert ledger.run(skipped[0]).state == "skipped"
        assert emitted(caplog, "run.skipped") == [RunSkipped("work", skipped[0], "overlap")]

    def test_a_run_that_is_over_is_not_worked_on_again(self, run_job, ledger):
        row = run_job(work)

        assert run_job.executor.execute(work, row.id) == Verdict.NONE
        assert run_job.row(row.id).attempt == 1


class Unspeakable(Exception):
    """An error whose text cannot be read."""

    def __str__(self) -> str:
        raise self.args[0]


class TestFailure:
    """I4: a failed attempt is rolled back, recorded, and tried again until its retries are used up."""

    @pytest.mark.parametrize(
        "raised", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), ValueError("no")], ids=repr
    )
    def test_whatever_the_text_of_an_error_raises_the_attempt_is_counted(self, run_job, raised):
        def function(run):
            raise Unspeakable(raised)

        row = run_job(once(function, max_retries=0))

        assert (row.state, row.reason, row.failures) == ("dead", "retries", 1)
        assert row.error == "Unspeakable (its text cannot be read)"

    def test_a_huge_error_is_kept_as_bounded_text(self, run_job):
        def function(run):
            raise ValueError("x" * 30_000_000)

        row = run_job(once(function, max_retries=0))

        assert (row.state, row.failures) == ("dead", 1)
        assert row.error == f"ValueError: {'x' * 1988}"

    @pytest.mark.parametrize("uses_session", [False, True])
    def test_a_result_or_an_error_that_the_encoding_lacks_ends_the_run_or_is_replaced(
        self, postgres_url, process, uses_session, monkeypatch
    ):
        monkeypatch.setattr(databases, "CLIENT_ENCODING", "LATIN1")
        engine = databases.connect(postgres_url)
        run_job = RunJob(Executor(engine, Member(process.id), "test:1"))

        def function(run):
            if uses_session:
                run.session.execute(text("SELECT 1"))
            return "5 \u20ac"

        def fail(run):
            if uses_session:
                run.session.execute(text("SELECT 1"))
            raise ValueError("5 \u20ac")

        refused = run_job(once(function))
        failed = run_job(once(fail, max_retries=0))
        databases.dispose(engine)

        assert (refused.state, refused.reason, refused.failures) == ("dead", "result", 1)
        assert (failed.state, failed.reason, failed.error) == ("dead", "retries", "ValueError: 5 ?")

    def test_a_failed_attempt_is_rolled_back_and_its_error_recorded(self, run_job, ledger):
        row = run_job(fail)

        assert (row.state, row.reason, row.error) == ("retrying", "error", "RuntimeError: failed on purpose")
        assert (row.attempt, row.failures, row.process_id, row.sent_at) == (1, 1, None, None)
        assert row.finished_at is None
        assert ledger.effects() == []

    def test_the_retry_is_due_after_exactly_its_delay_by_the_databases_clock(self, run_job, ledger):
        before = ledger.value("SELECT clock_timestamp()")
        row = run_job(fail)
        after = ledger.value("SELECT clock_timestamp()")

        assert before <= row.due_at - fail.retry_delay <= after

    def test_a_retry_before_its_time_is_not_worked_on(self, run_job):
        row = run_job(fail)

        assert run_job.executor.execute(fail, row.id) == Verdict.EARLY
        assert run_job.row(row.id).attempt == 1

    def test_a_run_is_dead_once_its_retries_are_used_up(self, run_job, ledger):
        row = run_job(fail)
        states = [row.state]
        for _ in range(2):
            retry_now(ledger, row.id)
            states.append(run_job.executor.execute(fail, row.id))

        row = run_job.row(row.id)
        assert states == ["retrying", "retrying", "dead"]
        assert (row.reason, row.attempt, row.failures, row.error) == (
            "retries", 3, 3, "RuntimeError: failed on purpose"
        )  # fmt: skip
        assert row.finished_at is not None

    def test_without_retries_the_first_failure_is_the_end(self, run_job):
        def function(run):
            raise RuntimeError("once")

        row = run_job(once(function, max_retries=0))

        assert (row.state, row.reason, row.attempt) == ("dead", "retries", 1)

    def test_an_exponential_delay_doubles_with_each_failure(self, run_job, ledger):
        def function(run):
            raise RuntimeError("again")

        growing = once(function, max_retries=5, retry_delay=timedelta(minutes=1), backoff="exponential")
        row = run_job(growing)
        delays = []
        for _ in range(4):
            delays.append(
                ledger.value(
                    "SELECT date_trunc('minute', due_at - clock_timestamp() + interval '1 second') FROM rota_runs"
                )
            )
            retry_now(ledger, row.id)
            run_job.executor.execute(growing, row.id)

        assert delays == [timedelta(minutes=minutes) for minutes in (1, 2, 4, 8)]

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("base")])
    def test_an_exit_raised_in_a_job_is_the_runs_failure_and_not_the_workers(self, run_job, error):
        def function(run):
            raise error

        row = run_job(once(function))

        assert (row.state, row.reason) == ("retrying", "error")
        assert row.error.startswith(type(error).__name__)

    def test_an_error_that_postgresql_cannot_store_is_recorded_without_what_it_cannot(self, run_job):
        def function(run):
            raise RuntimeError("nul \0 and surrogate \ud800 in the text")

        row = run_job(once(function))

        assert (row.state, row.reason) == ("retrying", "error")
        assert row.error.startswith("RuntimeError: nul ")

    def test_an_error_that_cannot_be_written_out_is_a_failure_like_others(self, run_job):
        class SilentError(Exception):
            def __str__(self):
                raise ValueError("no words")

        def function(run):
            raise SilentError

        row = run_job(once(function))

        assert (row.state, row.reason) == ("retrying", "error")
        assert row.error.startswith("SilentError")

    def test_a_long_error_is_cut(self, run_job):
        def function(run):
            raise RuntimeError("x" * 100_000)

        assert len(run_job(once(function)).error) == 2000


class TestBadArguments:
    """If arguments do not fit, the run ends at once. The error names the argument and not its value."""

    @pytest.mark.parametrize(
        ("args", "named"),
        [
            ('{"word": 12345}', "word"),
            ('{"word": "a", "wrod": "secret-value"}', "wrod is not an argument; did you mean 'word'?"),
            ('{"word": {"secret-value": 1}}', "word"),
        ],
    )
    def test_wrong_arguments_are_dead_at_once_naming_the_argument_and_not_its_value(self, run_job, ledger, args, named):
        run_id = ledger.request()
        ledger.do("UPDATE rota_runs SET args = CAST(:args AS jsonb)", args=args)

        assert run_job.executor.execute(work, run_id) == State.DEAD

        row = run_job.row(run_id)
        assert (row.state, row.reason, row.attempt) == ("dead", "arguments", 1)
        assert named in row.error
        assert "secret-value" not in row.error
        assert "12345" not in row.error
        assert ledger.effects() == []

    def test_a_missing_argument_is_named(self, run_job, ledger):
        def function(run, mailbox: int):
            leave(run.session, "never")

        run_id = ledger.request()
        run_job.executor.execute(once(function), run_id)

        row = run_job.row(run_id)
        assert (row.state, row.reason, row.error) == (
            "dead",
            "arguments",
            "BadArguments: job 'work': mailbox is missing",
        )
        assert ledger.effects() == []


class TestBadResult:
    """A result that is not JSON is refused, and the work is rolled back."""

    @pytest.mark.parametrize(
        "result",
        [object(), {1, 2}, float("nan"), b"bytes", datetime(2026, 1, 1, tzinfo=UTC), "x" * 70_000, "nul\0", "\ud800"],
        ids=["object", "set", "nan", "bytes", "datetime", "long", "nul", "surrogate"],
    )
    def test_a_result_that_json_cannot_hold_is_dead_and_its_work_undone(self, run_job, ledger, result):
        def function(run):
            leave(run.session, "half")
            return result

        row = run_job(once(function))

        assert (row.state, row.reason, row.result) == ("dead", "result", None)
        assert row.error.startswith("BadResult: ")
        assert ledger.effects() == []

    def test_a_result_that_refers_to_itself_is_dead(self, run_job):
        result: list = []
        result.append(result)

        assert run_job(once(lambda run: result)).reason == "result"


class TestSessions:
    """Whatever a job does to its session, its run has exactly one outcome."""

    def test_what_was_done_before_a_rollback_is_undone_and_the_rest_is_stored(self, run_job, ledger):
        def function(run):
            leave(run.session, "undone")
            run.session.rollback()
            leave(run.session, "kept")

        assert run_job(once(function)).state == "succeeded"
        assert ledger.effects() == ["kept"]

    def test_a_rollback_at_the_end_undoes_the_work_and_the_run_succeeds(self, run_job, ledger):
        def function(run):
            leave(run.session, "undone")
            run.session.rollback()

        assert run_job(once(function)).state == "succeeded"
        assert ledger.effects() == []

    def test_a_savepoint_is_rolled_back_by_itself(self, run_job, ledger):
        def function(run):
            leave(run.session, "before")
            with pytest.raises(IntegrityError), run.session.begin_nested():
                leave(run.session, "before")
            with run.session.begin_nested():
                leave(run.session, "after")

        assert run_job(once(function)).state == "succeeded"
        assert ledger.effects() == ["after", "before"]

    def test_a_savepoint_that_is_left_open_is_committed_with_the_rest(self, run_job, ledger):
        def function(run):
            run.session.begin_nested()
            leave(run.session, "open")

        assert run_job(once(function)).state == "succeeded"
        assert ledger.effects() == ["open"]

    def test_a_job_that_leaves_a_failed_transaction_behind_has_failed(self, run_job, ledger):
        def function(run):
            leave(run.session, "half")
            try:
                run.session.execute(text("SELECT 1 / 0"))
            except Exception:  # noqa: BLE001 — as a careless job does
                return "fine"

        row = run_job(once(function))

        assert (row.state, row.reason, row.result) == ("retrying", "error", None)
        assert ledger.effects() == []

    def test_a_job_that_leaves_a_failed_flush_behind_has_failed(self, run_job, ledger):
        def function(run):
            run.session.add_all([Effect(word="same"), Effect(word="other")])
            run.session.flush()
            run.session.expunge_all()
            run.session.add(Effect(word="same"))
            try:
                run.session.flush()
            except IntegrityError:
                return "fine"

        row = run_job(once(function))

        assert (row.state, row.result) == ("retrying", None)
        assert ledger.effects() == []

    def test_a_job_that_closes_its_session_still_has_an_outcome(self, run_job, ledger):
        def function(run):
            leave(run.session, "undone")
            run.session.close()

        assert run_job(once(function)).state == "succeeded"
        assert ledger.effects() == []

    def test_threads_working_on_runs_do_not_share_a_session(self, run_job, ledger):
        both = threading.Barrier(2)

        def function(run, word: str):
            leave(run.session, word)
            both.wait(10)

        overlapping = once(function, overlap="allow")
        threads = [
            threading.Thread(target=run_job, args=[overlapping], kwargs={"args": {"word": word}}) for word in ("a", "b")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)

        assert ledger.states("work") == ["succeeded", "succeeded"]
        assert ledger.effects() == ["a", "b"]


def pid(run):
    """Return the id of the backend of a job's session."""
    return run.session.execute(text("SELECT pg_backend_pid()")).scalar_one()


class TestMetrics:
    """I7: an error of the metrics does not change the outcome of a run."""

    @pytest.mark.parametrize("name", ["run_started", "run_ended"])
    def test_metrics_that_cannot_be_written_change_no_outcome(self, run_job, monkeypatch, caplog, name):
        def full(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr(metrics, name, full)

        assert run_job(work).state == "succeeded"
        assert "metrics.not_written" in caplog.text


class TestInHand:
    """The leases that this process knows it has."""

    def test_a_run_is_in_hand_while_its_job_works(self, run_job, executor):
        seen = []
        run_job(once(lambda run: seen.append(len(executor.membership.in_hand))))
        run_job(once(lambda run: 1 / 0))

        assert seen == [1]
        assert not executor.membership.in_hand.tokens

    def test_what_was_claimed_ahead_is_until_it_is_given_up(self, executor, ledger, caplog):
        caplog.set_level("DEBUG", "rota")
        run_id = ledger.request(exclusive=False)
        claimed = executor.claims.claim_ahead([(run_id, "work")])
        assert executor.membership.in_hand.tokens == {claimed[0].token}

        ledger.do("ALTER TABLE rota_runs RENAME TO rota_runs_away")
        try:
            executor.claims.unclaim(claimed)
            assert executor.claims.claim_ahead([(run_id, "work")]) == []
        finally:
            ledger.do("ALTER TABLE rota_runs_away RENAME TO rota_runs")

        assert not executor.membership.in_hand.tokens
        assert ledger.run(run_id).state == "running"  # until the heartbeat finds the run
        missing = 'relation "rota_runs" does not exist'
        (not_released,), (not_claimed,) = emitted(caplog, "run.not_released"), emitted(caplog, "run.not_claimed_ahead")
        assert isinstance(not_released, RunNotReleased)
        assert isinstance(not_claimed, RunNotClaimedAhead)
        assert (not_released.runs, missing in not_released.error, missing in not_claimed.error) == (1, True, True)


class TestRetryRules:
    """``retry_on``, ``dead_on``, and the retries of slots."""

    @pytest.mark.parametrize(
        ("rules", "outcome"),
        [
            ({"retry_on": (RuntimeError,)}, ("retrying", "error")),
            ({"retry_on": (OSError,)}, ("dead", "no retry")),
            ({"dead_on": (Exception,)}, ("dead", "no retry")),
            ({"retry_on": (RuntimeError,), "dead_on": (Exception,)}, ("dead", "no retry")),
        ],
    )
    def test_a_rule_decides_about_a_retry(self, run_job, rules, outcome):
        def function(run):
            raise RuntimeError("failed on purpose")

        row = run_job(once(function, **rules))

        assert (row.state, row.reason) == outcome
        assert (row.failures, row.error) == (1, "RuntimeError: failed on purpose")
        assert (row.finished_at is None) == (row.state == "retrying")

    @pytest.mark.parametrize(("rules", "state"), [({}, "retrying"), ({"dead_on": (DBAPIError,)}, "dead")])
    def test_a_lost_connection_is_retried_unless_dead_on_names_it(self, run_job, ledger, rules, state):
        """The job did not cause this error, and could not name it in ``retry_on``."""

        def function(run):
            leave(run.session, "half")
            ledger.value("SELECT pg_terminate_backend(:pid)", pid=pid(run))

        assert run_job(once(function, retry_on=(OSError,), **rules)).state == state

    def test_an_error_of_a_statement_is_judged(self, run_job):
        row = run_job(once(lambda run: run.session.execute(text("SELECT nothing")), retry_on=(OSError,)))

        assert (row.state, row.reason) == ("dead", "no retry")

    def test_the_retry_of_a_slot_is_due_by_the_next_slot(self, executor, ledger):
        def function(run):
            raise RuntimeError("failed on purpose")

        schedule, longest = every(days=300), timedelta(days=366)
        options = {"backoff": "exponential", "longest_delay": longest, "max_retries": 99}
        run_id = ledger.request(slot=schedule.latest_at(ledger.value("SELECT clock_timestamp()")), failures=60)
        executor.execute(once(function, schedule=schedule, **options), run_id)

        row = ledger.run(run_id)
        assert row.due_at == schedule.next_after(row.started_at)
