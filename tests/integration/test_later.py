"""``Later``: a function can postpone its run for up to 7 days in all, which does not count as a failure."""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from core import Later, RotaError, RunMiddleware, every, job
from core import database as databases
from core.clock import system_clock
from core.errors import BadTime, NaiveTime
from core.ledger import operations, runs
from core.observability import metrics
from core.operations.stories import hardships
from core.scheduling.misfires import miss_late
from core.testing import registry_of
from tests.support.effects import leave
from tests.support.emitted import emitted

HOUR = timedelta(hours=1)


def postponing(**when):
    """Return a function that does half of its work and postpones its run."""

    def function(run):
        leave(run.session, "half")
        raise Later(**when)

    return function


def once(function, **options):
    return job("work", **options)(function)


def again(ledger, executor, work, run_id):
    """Make another attempt of a run now."""
    ledger.do("UPDATE rota_runs SET due_at = clock_timestamp() WHERE id = :id", id=run_id)
    executor.execute(work, run_id)
    return ledger.run(run_id)


class TestPostponing:
    def test_a_postponed_run_waits_and_no_failure_is_counted(self, run_job, ledger, caplog):
        caplog.set_level("INFO")
        before = ledger.value("SELECT clock_timestamp()")
        row = run_job(once(postponing(in_=HOUR, reason="429"), max_retries=0))
        after = ledger.value("SELECT clock_timestamp()")

        assert (row.state, row.reason, row.error) == ("retrying", "later", "Later: 429")
        assert (row.attempt, row.failures, row.crashes, row.laters) == (1, 0, 0, 1)
        assert before <= row.due_at - HOUR <= after
        assert before <= row.later_since <= after
        assert (row.process_id, row.sent_at, row.finished_at) == (None, None, None)
        assert ledger.effects() == []
        (event,) = emitted(caplog, "run.postponed")
        assert (event.run, event.state, event.laters, event.reason) == (row.id, "retrying", 1, "429")

    def test_a_run_may_be_postponed_until_a_time(self, run_job):
        until = system_clock() + HOUR

        assert run_job(once(postponing(at=until))).due_at == until

    def test_a_run_that_was_postponed_often_has_all_its_retries(self, executor, run_job, ledger):
        def function(run):
            if run.attempt <= runs.MOST_LOSSES + 2:
                raise Later(in_=HOUR)
            raise RuntimeError("failed on purpose")

        work = once(function, max_retries=1)
        row = run_job(work)
        first = row.later_since
        for _ in range(runs.MOST_LOSSES + 2):
            row = again(ledger, executor, work, row.id)

        assert (row.state, row.reason, row.failures, row.laters) == ("retrying", "error", 1, runs.MOST_LOSSES + 2)
        assert row.later_since == first
        assert hardships(row) == ["Of its 23 attempts, 1 ended in an error and 22 postponed the run."]

    def test_postponed_attempts_are_no_lost_ones(self, executor, run_job, ledger):
        row = run_job(once(postponing(in_=HOUR)))
        ledger.do(
            "UPDATE rota_runs SET state = 'running', process_id = :process, token = 1, attempt = 40, laters = 39,"
            " started_at = clock_timestamp() - interval '1 hour' WHERE id = :id",
            id=row.id, process=executor.membership.process_id,
        )  # fmt: skip
        with ledger.engine.begin() as connection:
            (forgotten,) = runs.release_forgotten(
                connection, executor.membership.process_id, [], timedelta(0), "forgotten"
            )

        assert forgotten.state == "retrying"

    def test_success_after_later_is_a_success(self, executor, run_job, ledger):
        def function(run):
            if run.attempt == 1:
                raise Later(in_=HOUR)
            leave(run.session, "done")

        work = once(function)
        row = again(ledger, executor, work, run_job(work).id)

        assert (row.state, row.reason, row.error, row.laters) == ("succeeded", None, None, 1)
        assert ledger.effects() == ["done"]

    def test_work_up_to_a_checkpoint_stays(self, run_job, ledger):
        def function(run):
            leave(run.session, "first")
            run.checkpoint()
            leave(run.session, "second")
            raise Later(in_=HOUR)

        run_job(once(function))

        assert ledger.effects() == ["first"]

    def test_a_postponed_attempt_is_counted_apart_from_failures(self, executor, run_job, ledger, monkeypatch):
        counted = []
        monkeypatch.setattr(metrics, "run_ended", lambda *values: counted.append(values[:2]))

        run_job(once(postponing(in_=HOUR)))

        assert counted == [("work", "later")]

    def test_plugins_middleware_sees_no_error(self, use_jobs, run_job):
        seen = []

        class Watching(RunMiddleware):
            every_job = True

            @contextmanager
            def around(self, attempt):
                yield

            def ended(self, attempt, state):
                seen.append((state, attempt.exception))

        work = once(postponing(in_=HOUR))
        use_jobs(work, middleware=[Watching()])
        run_job(work)

        assert seen == [("later", None)]


class TestSlots:
    SLOT = datetime(2026, 11, 27, 3, tzinfo=UTC)

    def test_a_postponed_slot_is_queued_and_marked_as_tried(self, executor, ledger):
        run_id = ledger.request(slot=self.SLOT)
        executor.execute(once(postponing(in_=HOUR), schedule=every(hours=1)), run_id)

        assert (ledger.run(run_id).state, ledger.run(run_id).reason) == ("queued", "later")

    @pytest.mark.parametrize(
        ("age", "outcome"), [(HOUR, ("queued", "later")), (timedelta(hours=7), ("missed", "later"))]
    )
    @pytest.mark.parametrize("misfire", ["latest", "skip"])
    def test_no_policy_judges_a_postponed_slot_before_its_grace_ends(
        self, executor, database, ledger, misfire, age, outcome
    ):
        work = once(postponing(in_=HOUR), schedule=every(minutes=15), misfire=misfire)
        now = ledger.value("SELECT clock_timestamp()")
        run_id = ledger.request(slot=now - age)
        executor.execute(work, run_id)
        ledger.request(slot=now - age + timedelta(minutes=15))

        with databases.autocommit(database) as connection:
            miss_late(connection, registry_of(work))

        assert (ledger.run(run_id).state, ledger.run(run_id).reason) == outcome

    def test_a_slot_that_had_failed_stays_a_retry(self, executor, ledger):
        """The end of the grace does not end the run: a retry is never dropped because its slot is old."""
        run_id = ledger.request(slot=self.SLOT, state="retrying", attempt=1, failures=1)
        executor.execute(once(postponing(in_=HOUR), schedule=every(hours=1)), run_id)

        assert (ledger.run(run_id).state, ledger.run(run_id).reason) == ("retrying", "later")


class TestBounds:
    def ago(self, ledger, run_id, span):
        ledger.do("UPDATE rota_runs SET later_since = clock_timestamp() - :span WHERE id = :id", span=span, id=run_id)

    @pytest.mark.parametrize(
        ("since", "state"), [(timedelta(days=7, minutes=-61), "retrying"), (timedelta(days=7, minutes=-59), "dead")]
    )
    def test_a_run_is_postponed_for_seven_days_in_all(self, executor, run_job, ledger, caplog, since, state):
        caplog.set_level("INFO")
        work = once(postponing(in_=HOUR))
        run_id = run_job(work).id
        self.ago(ledger, run_id, since)
        row = again(ledger, executor, work, run_id)

        assert (row.state, row.reason, row.laters) == (state, "later", 2)
        assert (row.finished_at is None) == (state == "retrying")
        assert emitted(caplog, "run.postponed")[-1].state == state

    def test_seven_days_at_once_are_allowed(self, run_job):
        assert run_job(once(postponing(in_=timedelta(days=7)))).state == "retrying"

    @pytest.mark.parametrize(("left", "state"), [(2 * HOUR, "retrying"), (HOUR / 2, "dead")])
    def test_a_run_is_not_postponed_past_its_deadline(self, executor, ledger, left, state):
        run_id = ledger.request(expires_at=system_clock() + left)
        executor.execute(once(postponing(in_=HOUR)), run_id)

        assert (ledger.run(run_id).state, ledger.run(run_id).reason) == (state, "later")

    def test_a_run_that_a_person_retries_has_seven_days_again(self, executor, run_job, ledger):
        work = once(postponing(in_=HOUR))
        run_id = run_job(work).id
        self.ago(ledger, run_id, timedelta(days=8))
        assert again(ledger, executor, work, run_id).state == "dead"

        with ledger.engine.begin() as connection:
            operations.retry(connection, [run_id], [work])
        executor.execute(work, run_id)

        assert (ledger.run(run_id).state, ledger.run(run_id).laters) == ("retrying", 1)


class TestRefusals:
    @pytest.mark.parametrize(
        ("when", "error", "words"),
        [
            ({}, BadTime, "needs either in_= or at="),
            ({"in_": HOUR, "at": datetime(2099, 1, 1, tzinfo=UTC)}, BadTime, "needs either in_= or at="),
            ({"in_": 60}, BadTime, "must be a timedelta"),
            ({"in_": timedelta(0)}, BadTime, "must be more than 0"),
            ({"in_": -HOUR}, BadTime, "must be more than 0"),
            ({"in_": timedelta(days=7, seconds=1)}, BadTime, "at most 7 days"),
            ({"at": "2099-01-01"}, BadTime, "must be a datetime"),
            ({"at": datetime(2099, 1, 1)}, NaiveTime, "has no time zone"),  # noqa: DTZ001 — the mistake
            ({"in_": HOUR, "reason": 429}, BadTime, "must be a string"),
        ],
    )
    def test_a_later_without_a_usable_time_is_refused(self, when, error, words):
        with pytest.raises(error, match=words):
            Later(**when)

    @pytest.mark.parametrize(
        ("at", "words"),
        [
            (lambda run: run.now, "is not after the start of the attempt"),
            (lambda run: run.now - HOUR, "is not after the start of the attempt"),
            (lambda run: run.now + timedelta(days=7, seconds=1), "more than 7 days ahead"),
        ],
    )
    def test_a_time_that_is_past_or_too_far_fails_the_attempt(self, run_job, at, words):
        def function(run):
            raise Later(at=at(run))

        row = run_job(once(function))

        assert (row.state, row.reason, row.failures, row.laters) == ("retrying", "error", 1, None)
        assert "BadTime: Later: at=" in row.error
        assert words in row.error

    def test_a_later_without_end_fails_the_attempt(self, run_job):
        row = run_job(once(postponing()))

        assert (row.state, row.failures) == ("retrying", 1)
        assert row.error == "BadTime: Later needs either in_= or at=, the time of the next attempt"

    def test_the_fast_lane_has_no_later(self, executor):
        fast = once(postponing(in_=HOUR), ledger=False)

        with pytest.raises(RotaError, match=r"'work' is on the fast lane .* cannot be postponed by Later"):
            executor.execute_fast(fast, {}, "message")


def test_a_lost_lease_postpones_nothing(executor, database, ledger):
    """The run belongs to another process when the function raises ``Later``."""

    def function(run):
        with Session(database) as other, other.begin():
            other.connection().exec_driver_sql(f"UPDATE rota_runs SET token = token + 1 WHERE id = {run.id}")
        raise Later(in_=HOUR)

    run_id = ledger.request()

    assert executor.execute(once(function), run_id) == "lost"
    assert (ledger.run(run_id).state, ledger.run(run_id).laters) == ("running", None)
