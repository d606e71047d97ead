"""Retries and drops by hand: a retried run has all its retries again, and a dropped run does not run."""

from datetime import timedelta
from functools import partial

import pytest

from core import database as databases
from core import every, job
from core.ledger import operations
from core.ledger.models import State
from core.ledger.operations import Filter
from core.scheduling.misfires import miss_late
from core.testing import registry_of
from tests.support.racing import race

ROUNDS = 30


@job("work", queue="new", schedule=every(minutes=1), overlap="allow", max_retries=1, retry_delay=timedelta(0))
def work(run):
    raise ValueError("no")


@pytest.fixture
def retry(database):
    def retry(*run_ids, jobs=(work,), **options):
        with database.begin() as connection:
            return len(operations.retry(connection, run_ids, jobs, **options))

    return retry


@pytest.fixture
def drop(database):
    def drop(*run_ids):
        with database.begin() as connection:
            return len(operations.drop(connection, run_ids))

    return drop


@pytest.fixture
def dead(ledger):
    """Return a dead run."""

    def dead(**columns):
        spent = {"attempt": 2, "failures": 2, "crashes": 1, "error": "ValueError: no", "reason": "retries"}
        return ledger.request(**{"state": "dead", "finished_at": "now", **spent, **columns})

    return dead


class TestRetry:
    def test_it_waits_again_with_fresh_retries_and_keeps_its_past(self, retry, dead, ledger):
        run_id = dead(queue="old")

        assert retry(run_id) == 1

        row = ledger.run(run_id)
        assert (row.state, row.reason, row.failures, row.crashes) == ("retrying", "by hand", 0, 0)
        assert (row.attempt, row.retried_after, row.error) == (2, 2, "ValueError: no")
        assert row.retried_at is not None
        assert (row.finished_at, row.sent_at) == (None, None)
        assert (row.queue, row.exclusive) == ("new", False), "as its job is declared now"

    def test_it_has_all_its_attempts_once_more(self, retry, run_job, executor, ledger):
        run_id = run_job.request(work)
        for _ in range(2):
            executor.execute(work, run_id)
        assert ledger.run(run_id).state == "dead"

        retry(run_id)
        assert [executor.execute(work, run_id) for _ in range(2)] == ["retrying", "dead"]

        row = ledger.run(run_id)
        assert (row.attempt, row.failures, row.retried_after) == (4, 2, 2)

    def test_a_poisonous_run_has_its_crashes_before_it_again(self, retry, dead, ledger, claim_suspect):
        run_id = dead(reason="crashes", crashes=3)
        retry(run_id)

        assert claim_suspect(run_id) == "running"

    @pytest.fixture
    def claim_suspect(self, database, process):
        def claim(run_id):
            from core.ledger import claims

            with databases.autocommit(database) as connection:
                claimed = claims.claim(
                    connection, run_id, job="work", process_id=process.id, worker="test:1", most_crashes=2
                )
                return claimed[0]

        return claim

    @pytest.mark.parametrize("misfire", ["latest", "all", "skip"])
    def test_a_slot_is_not_missed_again(self, retry, dead, ledger, database, misfire):
        mine = job("work", schedule=every(minutes=1), misfire=misfire, misfire_grace=timedelta(minutes=1))(
            lambda run: None
        )
        run_id = dead(slot="2026-01-01T03:00:00Z")
        retry(run_id)

        with databases.autocommit(database) as connection:
            miss_late(connection, registry_of(mine))

        assert ledger.run(run_id).state == "retrying"

    @pytest.mark.parametrize("attempt", [0, 2])
    def test_one_that_meets_a_rival_waits_and_is_not_skipped(self, retry, dead, ledger, process, database, attempt):
        exclusive = job("work", queue="new", overlap="wait")(lambda run: None)
        process.lease(database, ledger.request())
        run_id = dead(attempt=attempt)
        retry(run_id, jobs=[exclusive])

        verdict, _ = process.claim(database, run_id)

        assert (verdict, ledger.run(run_id).state) == ("waiting", "retrying")

    @pytest.mark.parametrize("state", ["queued", "running", "retrying", "succeeded", "skipped", "missed", "orphaned"])
    def test_only_the_dead_are(self, retry, ledger, state):
        final = state not in ("queued", "running", "retrying")
        run_id = ledger.request(state=state, finished_at="now" if final else None)

        assert retry(run_id) == 0
        assert ledger.run(run_id).state == state

    def test_runs_of_other_jobs_are_not(self, retry, dead):
        assert retry(dead(job="other")) == 0

    def test_of_10_who_ask_at_once_one_gets_it(self, retry, dead, ledger):
        for _ in range(ROUNDS):
            run_id = dead()

            assert sorted(race(*[partial(retry, run_id)] * 10)) == [0] * 9 + [1]
            assert ledger.run(run_id).retried_after == 2

    def test_who_ask_for_the_same_in_another_order_do_not_block_each_other(self, retry, drop, dead):
        for _ in range(ROUNDS):
            run_ids = [dead() for _ in range(20)]
            backwards = run_ids[::-1]

            mild = {"even_withdrawn": False}
            done = race(partial(retry, *run_ids, **mild), partial(retry, *backwards, **mild), partial(drop, *backwards))

            assert set(done) <= {0, 20}
            assert sum(done[:2]) in (0, 20)  # no run, if the drop was first


class TestDrop:
    @pytest.mark.parametrize("was", ["queued", "retrying", "dead"])
    def test_it_is_dead_and_what_it_was_is_kept(self, drop, ledger, was):
        finished_at = "2026-01-01T03:00:00Z" if was == "dead" else None
        run_id = ledger.request(state=was, reason="error", error="ValueError: no", finished_at=finished_at)

        assert drop(run_id) == 1

        row = ledger.run(run_id)
        assert (row.state, row.reason, row.former_state, row.former_reason) == ("dead", "dropped", was, "error")
        assert row.error == "ValueError: no"
        assert (row.finished_at.year == 2026 and row.finished_at.month == 1) == (was == "dead")

    @pytest.mark.parametrize("state", ["running", "succeeded", "skipped", "missed", "orphaned"])
    def test_what_is_at_work_or_over_is_not(self, drop, ledger, state):
        run_id = ledger.request(state=state, finished_at=None if state == "running" else "now")

        assert drop(run_id) == 0
        assert ledger.run(run_id).state == state

    def test_what_was_dropped_is_not_dropped_again(self, drop, ledger):
        run_id = ledger.request()

        assert [drop(run_id), drop(run_id)] == [1, 0]
        assert ledger.run(run_id).former_state == "queued"

    def test_its_message_is_then_for_nothing(self, drop, ledger, process, database):
        run_id = ledger.request()
        drop(run_id)

        assert process.claim(database, run_id)[0] == "none"

    def test_a_run_is_either_claimed_or_dropped(self, drop, ledger, process, database):
        for _ in range(ROUNDS):
            run_id = ledger.request()

            (verdict, _), dropped = race(partial(process.claim, database, run_id), partial(drop, run_id))

            state = ledger.run(run_id).state
            outcomes = [("running", 0, "running"), ("none", 1, "dead"), ("locked", 1, "dead")]
            assert (verdict, dropped, state) in outcomes
            ledger.do("DELETE FROM rota_runs")

    def test_it_can_still_be_retried_by_its_id(self, drop, retry, ledger):
        run_id = ledger.request()
        drop(run_id)

        assert retry(run_id, even_withdrawn=False) == 0
        assert retry(run_id) == 1
        assert ledger.run(run_id).former_state is None


class TestFilter:
    @pytest.fixture
    def chosen(self, database):
        def chosen(*states, **criteria):
            with database.connect() as connection:
                wanted = Filter(states or operations.RETRIABLE, **criteria)
                return [run.id for run in operations.chosen(connection, wanted)]

        return chosen

    def test_each_criterion_narrows(self, chosen, dead, ledger):
        mine = dead(error="ConnectionError: 50% refused_here", finished_at="2026-01-02T00:00:00Z", queue="mail")
        other = dead(job="other", reason="crashes", error=None)

        assert chosen() == [mine, other]
        assert chosen(jobs={"other", "third"}) == [other]
        assert chosen(jobs=set()) == []
        assert chosen(queue="mail") == [mine]
        assert chosen(reason="crashes") == [other]
        assert chosen(error="50% REFUSED_") == [mine], "no wildcards, in whatever case"
        assert chosen(error="50%_refused") == []
        assert chosen(since=ledger.run(mine).finished_at + timedelta(seconds=1)) == [other]
        assert chosen(until=ledger.run(mine).finished_at + timedelta(seconds=1)) == [mine]
        assert chosen(limit=1) == [mine]

    def test_what_waits_is_judged_by_when_it_was_queued(self, chosen, ledger):
        old = ledger.request(queued_at="2026-01-01T00:00:00Z")
        ledger.request()

        assert chosen(State.QUEUED, until=ledger.run(old).queued_at + timedelta(days=1)) == [old]

    def test_what_was_dropped_is_only_meant_if_it_is_asked_for(self, chosen, dead, drop):
        kept, dropped = dead(), dead()
        drop(dropped)

        assert chosen() == [kept]
        assert chosen(reason="dropped") == [dropped]

    def test_the_dead_are_found_by_an_index(self, database, ledger):
        ledger.do("INSERT INTO rota_runs (job, queue) SELECT 'work', 'default' FROM generate_series(1, 2000)")
        ledger.do("ANALYZE rota_runs")
        from sqlalchemy import select

        query = select(operations.RUNS.c.id).where(*Filter(operations.RETRIABLE).conditions())
        compiled = query.compile(database, compile_kwargs={"literal_binds": True})

        plan = "\n".join(row[0] for row in ledger.rows(f"EXPLAIN {compiled}"))

        assert "rota_runs_unhappy" in plan
