"""Runs whose arguments do not fit their job as this process declares it, and that fit in another release."""

from datetime import timedelta

import pytest

from core import database as databases
from core import every, job
from core.dispatcher.turns import TurnKeeper
from core.errors import BadArguments
from core.jobs import arguments
from core.ledger import claims, slots, turns
from core.ledger.claims import Verdict
from core.ledger.turns import Turn
from core.observability.events import RunMisfit
from tests.support.emitted import emitted


def work_of(function, **options):
    return job("work", overlap="allow", **options)(function)


@work_of
def here(run, n: int) -> None:
    """The job as this process declares it."""


@work_of
def elsewhere(run, number: int) -> None:
    """The job as another process declares it."""


FORM, OTHER_FORM = arguments.form(here), arguments.form(elsewhere)


@pytest.fixture
def other(start_process):
    """Register a live worker of a release that declares the job differently."""
    return start_process(jobs=[elsewhere], queues=["default"])


@pytest.fixture
def requested(ledger):
    return lambda **columns: ledger.request(args='{"number": 1}', exclusive=False, **columns)


def due_in(ledger, run_id):
    (seconds,) = ledger.rows(
        "SELECT extract(epoch FROM due_at - clock_timestamp()) AS left FROM rota_runs WHERE id = :id", id=run_id
    )
    return float(seconds.left)


def test_a_run_that_may_fit_elsewhere_is_left_there_uncounted_for_half_a_second(
    executor, requested, ledger, other, caplog
):
    caplog.set_level("INFO", "rota")
    run_id = requested(sent_at="now")

    status = executor.execute(here, run_id)

    row = ledger.run(run_id)
    assert (status, row.state, row.reason, row.attempt, row.failures) == ("misfit", "queued", "arguments", 0, 0)
    assert (row.sent_at, row.started_at, row.token, row.process_id) == (None, None, None, None)
    assert (row.refused_by, len(executor.membership.in_hand)) == ([FORM], 0)
    assert 0 < due_in(ledger, run_id) <= 0.5
    assert emitted(caplog, "run.misfit") == [RunMisfit("work", run_id)]


def test_what_a_form_has_refused_it_does_not_claim_again(executor, requested, ledger, other):
    run_id = requested(sent_at="now", refused_by=[FORM])

    status = executor.execute(here, run_id)

    row = ledger.run(run_id)
    assert (status, row.state, row.attempt, row.sent_at, row.refused_by) == ("misfit", "queued", 0, None, [FORM])
    assert 0 < due_in(ledger, run_id) <= 0.5


def test_a_retry_that_does_not_fit_stays_a_retry(executor, requested, ledger, other):
    run_id = requested(state="retrying", attempt=2, failures=2)

    executor.execute(here, run_id)

    row = ledger.run(run_id)
    assert (row.state, row.attempt, row.failures) == ("retrying", 2, 2)


class TestItsPlace:
    """I6: a run that does not fit stays before the runs of its key that were requested later."""

    @pytest.fixture
    def ordered(self, ledger):
        return lambda **columns: ledger.request(args='{"number": 1}', key="a", sent_at="now", **columns)

    @pytest.fixture
    def take(self, database, other):
        """Claims for the worker that a run fits."""
        return lambda run_id: other.claim(database, run_id, form=OTHER_FORM)

    @pytest.mark.parametrize("refused_by", [None, [FORM]], ids=["when it is checked", "when it is claimed"])
    def test_no_later_run_of_its_key_overtakes_it(self, executor, database, ordered, take, ledger, refused_by):
        first, second = ordered(refused_by=refused_by), ordered()
        due_at = ledger.run(first).due_at

        assert executor.execute(here, first) == "misfit"

        assert (ledger.run(first).due_at, ledger.run(first).reason) == (due_at, "arguments")
        assert take(second)[0] == Verdict.WAITING
        with databases.autocommit(database) as connection:
            assert TurnKeeper().look(connection) == 1
        assert ledger.run(first).sent_at is None
        assert take(second)[0] == Verdict.WAITING
        assert take(first)[0] == Verdict.RUNNING

    def test_it_is_parked_until_the_next_pass_of_the_dispatcher(self, executor, database, ordered, other, ledger):
        run_id = ordered()

        executor.execute(here, run_id)

        parked = ledger.value("SELECT sent_at = 'infinity' FROM rota_runs WHERE id = :id", id=run_id)
        with databases.autocommit(database) as connection:
            woken = turns.wake(connection, [Turn("work", "a")], carried=True)
        assert (parked, [run.run_id for run in woken]) == (True, [run_id])

    def test_a_slot_that_does_not_fit_is_not_missed_before_the_end_of_its_grace(
        self, executor, database, other, ledger
    ):
        now = ledger.value("SELECT clock_timestamp()")
        slow = job("work", schedule=every(minutes=1), misfire="skip", misfire_grace=timedelta(minutes=2))(
            lambda run: None
        )
        young, old = (
            ledger.request(args='{"number": 1}', key=key, slot=now - age, due_at=now - age)
            for key, age in (("a", timedelta(minutes=1)), ("b", timedelta(minutes=3)))
        )
        for run_id in (young, old):
            executor.execute(here, run_id)

        with databases.autocommit(database) as connection:
            assert slots.miss(connection, [slow], 30) == [("work", "arguments")]

        assert (ledger.run(young).state, ledger.run(old).state) == ("queued", "missed")


def test_the_process_that_it_fits_runs_it(database, requested, ledger, process, other):
    run_id = requested(refused_by=[FORM])

    with databases.autocommit(database) as connection:
        verdict, lease = claims.claim(
            connection, run_id, job="work", process_id=other.id, worker="test:2", form=OTHER_FORM
        )

    assert (verdict, lease.attempt) == ("running", 1)


def test_runs_that_were_refused_here_are_not_claimed_together(database, requested, process, other):
    refused, fresh = requested(refused_by=[FORM]), requested(refused_by=[OTHER_FORM])

    with databases.autocommit(database) as connection:
        sent = [(run_id, "work", ()) for run_id in (refused, fresh)]
        claimed = claims.claim_many(connection, sent, process_id=process.id, worker="test:1", forms={"work": FORM})

    assert [lease.run_id for lease in claimed] == [fresh]


class TestNobodyElse:
    @pytest.fixture
    def dead(self, executor, ledger):
        """Assert that the run is dead after it was executed once."""

        def check(run_id):
            assert executor.execute(here, run_id) == "dead"
            row = ledger.run(run_id)
            assert (row.state, row.reason, row.attempt) == ("dead", "arguments", 1)
            assert "number is not an argument" in row.error

        return check

    def test_without_another_worker_it_is_dead(self, requested, dead):
        dead(requested())

    @pytest.mark.parametrize(
        "told",
        [
            {"jobs": [elsewhere], "queues": ["default"], "kind": "scheduler"},
            {"jobs": [elsewhere], "queues": ["other"]},
            {"jobs": [here], "queues": ["default"]},
            {"jobs": [], "queues": ["default"]},
        ],
        ids=["a scheduler", "another queue", "the same form", "not the job"],
    )
    def test_a_process_that_cannot_run_it_does_not_count(self, requested, dead, start_process, told):
        start_process(**told)

        dead(requested())

    def test_once_every_live_form_has_refused_it_it_is_dead(self, requested, dead, other):
        dead(requested(refused_by=[OTHER_FORM]))

    @pytest.mark.parametrize("refused_by", [None, [FORM]])
    def test_once_the_other_worker_is_gone_it_is_dead(self, database, requested, dead, other, refused_by):
        other.expire(database)

        dead(requested(refused_by=refused_by))


def test_a_process_that_does_not_say_what_it_has_may_have_it(executor, requested, ledger, start_process):
    start_process(queues=["default"])
    run_id = requested()

    assert (executor.execute(here, run_id), ledger.run(run_id).state) == ("misfit", "queued")


def test_a_job_that_passes_on_wrong_arguments_is_dead_at_once(executor, ledger, other):
    @work_of
    def wrong(run, n: int) -> None:
        raise BadArguments("job 'next': n is missing")

    run_id = ledger.request(args='{"n": 1}', exclusive=False)

    assert executor.execute(wrong, run_id) == "dead"
    assert (ledger.run(run_id).reason, ledger.run(run_id).refused_by) == ("arguments", None)
