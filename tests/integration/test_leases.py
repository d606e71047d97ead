"""I5, I6: one claim of a run succeeds, one run of a job and key works at a time, and no run works without a lease."""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy.orm import Session

from core import database as databases
from core.errors import LeaseLost
from core.ledger import leases, processes, runs
from core.ledger.claims import Verdict
from core.ledger.models import State
from core.ledger.runs import Failure
from tests.support.racing import race

ROUNDS = 50


@contextmanager
def reaping(engine):
    """Yield a connection of the dispatcher, whose statements fail instead of waiting for a lock."""
    with databases.dedicated(engine) as connection:
        connection.exec_driver_sql("SET lock_timeout = '5s'")
        yield connection


class TestOneWinner:
    """I2, I6."""

    def test_one_of_20_racing_threads_claims_a_run(self, database, ledger, process):
        for _ in range(ROUNDS):
            run_id = ledger.request()

            verdicts = [verdict for verdict, _ in race(*[partial(process.claim, database, run_id)] * 20)]

            assert verdicts.count(Verdict.RUNNING) == 1
            assert set(verdicts) <= {Verdict.RUNNING, Verdict.NONE, Verdict.LOCKED}
            assert ledger.run(run_id).attempt == 1
            ledger.do("DELETE FROM rota_runs")

    def test_of_two_racing_slots_of_one_key_one_works_and_the_other_is_skipped(self, database, ledger, process):
        slot = datetime(2026, 1, 1, tzinfo=UTC)
        for _ in range(ROUNDS):
            first, second = (ledger.request(key="a", slot=slot + timedelta(minutes=each)) for each in range(2))

            claims = race(*[partial(process.claim, database, run_id) for run_id in (first, second)])
            verdicts = [verdict for verdict, _ in claims]

            assert verdicts.count(Verdict.RUNNING) == 1
            assert verdicts[1] in (Verdict.SKIPPED, Verdict.WAITING)  # the second may be claimed first
            rows = ledger.runs("work")
            assert (rows[0].state, rows[0].reason) == ("running", None)
            assert rows[1].reason == "overlap"
            assert all((row.finished_at is not None) == (row.state == "skipped") for row in rows)
            ledger.do("DELETE FROM rota_runs")

    def test_of_many_racing_runs_of_one_key_never_two_are_running(self, database, ledger, process):
        for _ in range(5):
            run_ids = [ledger.request(key="a") for _ in range(12)]

            verdicts = race(*[lambda run_id=run_id: process.claim(database, run_id)[0] for run_id in run_ids])

            assert verdicts.count(Verdict.RUNNING) == 1
            assert verdicts.count(Verdict.WAITING) == 11
            ledger.do("DELETE FROM rota_runs")


class TestSideBySide:
    """Runs that may run at the same time."""

    def test_runs_of_different_keys_work_side_by_side(self, database, ledger, process):
        run_ids = [ledger.request(key=key) for key in "abcdefgh"]

        verdicts = race(*[lambda run_id=run_id: process.claim(database, run_id)[0] for run_id in run_ids])

        assert set(verdicts) == {Verdict.RUNNING}

    def test_runs_of_different_jobs_work_side_by_side(self, database, ledger, process):
        for job in ("one", "other"):
            assert process.claim(database, ledger.request(job), job)[0] == Verdict.RUNNING

    def test_a_run_of_another_job_is_not_claimed(self, database, ledger, process):
        run_id = ledger.request("one")

        assert process.claim(database, run_id, "other") == (Verdict.NONE, None)
        assert ledger.run(run_id).state == "queued"

    def test_runs_that_may_overlap_work_side_by_side(self, database, ledger, process):
        run_ids = [ledger.request(exclusive=False) for _ in range(3)]

        assert [process.claim(database, run_id)[0] for run_id in run_ids] == [Verdict.RUNNING] * 3

    def test_a_finished_rival_is_no_rival(self, database, ledger, process):
        first = process.lease(database, ledger.request())
        with databases.autocommit(database) as connection:
            assert runs.succeed(connection, first, None) is not None

        assert process.claim(database, ledger.request())[0] == Verdict.RUNNING


class TestWaiting:
    """A run that has begun is not skipped."""

    def test_a_retry_that_meets_a_rival_waits_and_is_not_skipped(self, database, ledger, process):
        retried = ledger.request()
        lease = process.lease(database, retried)
        with databases.autocommit(database) as connection:
            assert runs.fail(connection, lease, Failure(State.RETRYING, "error", "boom"))
        ledger.do("UPDATE rota_runs SET due_at = clock_timestamp() + interval '1 second'")
        process.lease(database, ledger.request())
        ledger.do("UPDATE rota_runs SET due_at = clock_timestamp()")

        assert process.claim(database, retried)[0] == Verdict.WAITING

        row = ledger.run(retried)
        assert (row.state, row.reason, row.attempt) == ("retrying", "overlap", 1)
        assert ledger.value("SELECT sent_at = 'infinity' FROM rota_runs WHERE id = :id", id=retried)

    def test_a_waiting_retry_works_once_its_rival_has_ended(self, database, ledger, process):
        rival, retried = ledger.request(), ledger.request(attempt=1, failures=1, state="retrying")
        lease = process.lease(database, rival)
        assert process.claim(database, retried)[0] == Verdict.WAITING
        with databases.autocommit(database) as connection:
            assert runs.succeed(connection, lease, None) is True

        assert process.claim(database, retried)[0] == Verdict.RUNNING
        assert (ledger.run(retried).attempt, ledger.run(retried).reason) == (2, None)

    def test_a_run_before_its_time_is_not_claimed_and_is_left_to_the_dispatcher(self, database, ledger, process):
        early = ledger.request()
        ledger.do("UPDATE rota_runs SET due_at = clock_timestamp() + interval '1 hour', sent_at = clock_timestamp()")

        assert process.claim(database, early) == (Verdict.EARLY, None)

        row = ledger.run(early)
        assert (row.state, row.attempt, row.sent_at, row.reason) == ("queued", 0, None, None)


class TestNoLeaseToGive:
    """I5: a run that cannot be claimed does not start."""

    def test_a_process_that_is_not_registered_claims_nothing(self, database, ledger, process):
        run_id = ledger.request()
        processes.resign(process.connection, process.id)

        assert process.claim(database, run_id) == (Verdict.NONE, None)
        assert ledger.run(run_id).state == "queued"

    def test_an_expired_process_claims_nothing(self, database, ledger, process):
        run_id = ledger.request()
        process.expire(database)

        assert process.claim(database, run_id) == (Verdict.NONE, None)
        assert ledger.run(run_id).state == "queued"

    @pytest.mark.parametrize("state", ["succeeded", "dead", "skipped", "missed", "orphaned"])
    def test_a_run_that_is_over_is_not_claimed(self, database, ledger, process, state):
        run_id = ledger.request()
        ledger.do("UPDATE rota_runs SET state = :state, finished_at = clock_timestamp()", state=state)

        assert process.claim(database, run_id) == (Verdict.NONE, None)
        assert ledger.run(run_id).state == state

    def test_a_run_that_is_not_there_is_not_claimed(self, database, process):
        assert process.claim(database, 123_456_789) == (Verdict.NONE, None)

    def test_expired_leases_are_not_renewed(self, database, process):
        process.expire(database)

        assert not processes.renew(process.connection, process.id, timedelta(seconds=15))


def test_every_claim_draws_a_greater_token(database, ledger, process):
    tokens = []
    for _ in range(3):
        run_id = ledger.request(exclusive=False)
        for _ in range(3):
            lease = process.lease(database, run_id)
            tokens.append(lease.token)
            with databases.autocommit(database) as connection:
                runs.fail(connection, lease, Failure(State.RETRYING, "error", "boom"))

    assert tokens == sorted(set(tokens))


class TestHold:
    """I3: each commit checks the lease."""

    def test_a_good_lease_is_held(self, database, ledger, process):
        lease = process.lease(database, ledger.request())

        with Session(database) as session, session.begin():
            leases.hold(session, lease)

    def test_progress_is_recorded_with_it(self, database, ledger, process):
        lease = process.lease(database, ledger.request())

        with Session(database) as session, session.begin():
            leases.hold(session, lease, '{"done": 5}')

        assert ledger.run(lease.run_id).progress == {"done": 5}

    @pytest.mark.parametrize("progress", [None, "{}"])
    @pytest.mark.parametrize(
        "loss",
        [
            "UPDATE rota_runs SET token = token + 1",
            "UPDATE rota_runs SET state = 'succeeded', finished_at = clock_timestamp()",
            "UPDATE rota_runs SET state = 'retrying', process_id = NULL",
            "DELETE FROM rota_runs",
        ],
    )
    def test_a_lost_lease_is_not_held(self, database, ledger, process, loss, progress):
        lease = process.lease(database, ledger.request())
        ledger.do(loss)

        with Session(database) as session, pytest.raises(LeaseLost, match=f"run {lease.run_id} .* 'work'"):
            leases.hold(session, lease, progress)

    def test_a_lost_lease_neither_succeeds_nor_fails(self, database, ledger, process, start_process):
        lost = process.lease(database, ledger.request())
        ledger.do("UPDATE rota_runs SET state = 'retrying', process_id = NULL")
        start_process().lease(database, lost.run_id)

        with databases.autocommit(database) as connection:
            assert runs.succeed(connection, lost, None) is None
            assert not runs.fail(connection, lost, Failure(State.DEAD, "retries", "late"))

        assert (ledger.run(lost.run_id).state, ledger.run(lost.run_id).attempt) == ("running", 2)

    def test_a_run_held_in_an_open_transaction_is_handed_on_after_its_end(self, database, ledger, process):
        lease = process.lease(database, ledger.request())

        with Session(database) as session, session.begin():
            leases.hold(session, lease)
            processes.resign(process.connection, process.id)
            with reaping(database) as reaper:
                assert processes.recover(reaper, 3) == []
            assert ledger.run(lease.run_id).state == "running"

        with reaping(database) as reaper:
            (recovered,) = processes.recover(reaper, 3)
        assert (recovered.run_id, recovered.state) == (lease.run_id, "retrying")

    def test_a_success_that_commits_while_its_process_is_reaped_stays_a_success(self, database, ledger, process):
        lease = process.lease(database, ledger.request())

        with Session(database) as session, session.begin():
            assert runs.succeed(session, lease, None) is not None
            process.expire(database)
            with reaping(database) as reaper:
                processes.end_dead(reaper)
                assert processes.recover(reaper, 3) == []

        with reaping(database) as reaper:
            assert processes.recover(reaper, 3) == []
        assert ledger.run(lease.run_id).state == "succeeded"
