"""I2, I3, I7: runs that are claimed and recorded together have the same outcomes as runs that are claimed and recorded
one by one.
"""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from core import database as databases
from core import enqueue_many, job
from core.ledger import claims, runs
from core.ledger.leases import Lease
from core.middleware.execution import RECORDING
from core.testing import Member
from core.worker.completions import Completion, Completions
from core.worker.executor import Executor
from tests.support.effects import leave
from tests.support.eventually import eventually
from tests.support.threads import no_threads_to_give


@pytest.fixture
def claim_many(database, process):
    """Claim runs of ``work`` for a process."""

    def claim(*run_ids, job="work", process_id=None):
        with databases.autocommit(database) as connection:
            sent = [(run_id, job, ()) for run_id in run_ids]
            return claims.claim_many(connection, sent, process_id=process_id or process.id, worker="test:1")

    return claim


@pytest.fixture
def succeed_many(database, process):
    """Record the success of leases."""

    def succeed(*claimed, process_id=None):
        with databases.autocommit(database) as connection:
            return runs.succeed_many(connection, process_id or process.id, [(lease, "1") for lease in claimed])

    return succeed


def is_any_blocked(database):
    """Return whether a session of this database waits for the transaction of another session."""
    blocked = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with database.connect() as connection:
        return connection.exec_driver_sql(blocked).first() is not None


class TestClaims:
    """One statement claims all runs that can be claimed."""

    def test_all_are_claimed_each_under_a_token_of_its_own(self, claim_many, ledger, process):
        run_ids = [ledger.request(exclusive=False) for _ in range(10)]

        claimed = claim_many(*run_ids)

        assert sorted(lease.run_id for lease in claimed) == run_ids
        assert len({lease.token for lease in claimed}) == 10
        for run_id in run_ids:
            row = ledger.run(run_id)
            assert (row.state, row.attempt, row.process_id, row.worker) == ("running", 1, process.id, "test:1")
            assert row.started_at is not None

    @pytest.mark.parametrize(
        "columns",
        [
            {"due_at": "2999-01-01"},
            {"crashes": 1, "state": "retrying"},
            {"job": "other"},
            {"state": "running"},
            {"state": "succeeded", "finished_at": "2026-01-01"},
        ],
        ids=str,
    )
    def test_whatever_takes_a_closer_look_is_left_as_it_is(self, claim_many, ledger, columns):
        fine = ledger.request(exclusive=False)
        odd = ledger.request(**{"exclusive": False, "job": "work", **columns})
        before = ledger.run(odd)

        assert [lease.run_id for lease in claim_many(fine, odd)] == [fine]
        assert ledger.run(odd) == before

    def test_runs_that_may_not_overlap_are_claimed_if_they_have_none_before_them(self, claim_many, ledger):
        at_work = ledger.request(key="a", state="running")
        behind = ledger.request(key="a")
        first, second = ledger.request(key="b"), ledger.request(key="b")
        tried = ledger.request(key="c", state="retrying", slot="2026-01-01", attempt=1, due_at="2999-01-01")
        slot = ledger.request(key="c", slot="2026-01-02")
        alone = ledger.request(key="d")

        claimed = claim_many(at_work, behind, second, first, tried, slot, alone)

        assert {lease.run_id for lease in claimed} == {first, alone}
        assert {ledger.run(run_id).state for run_id in (behind, second, slot)} == {"queued"}

    def test_a_rival_that_a_claim_could_not_see_holds_up_no_other(self, claim_many, ledger, database):
        loser, others = ledger.request(key="a"), [ledger.request(key=str(number)) for number in range(5)]
        with database.connect() as rival, ThreadPoolExecutor() as pool:
            rival.exec_driver_sql(
                "INSERT INTO rota_runs (job, key, queue, state, started_at, due_at)"
                " VALUES ('work', 'a', 'default', 'running', now(), now() + interval '1 hour')"
            )
            claiming = pool.submit(claim_many, loser, *others)
            eventually(lambda: is_any_blocked(database))
            rival.commit()

            assert {lease.run_id for lease in claiming.result()} == set(others)
        assert ledger.run(loser).state == "queued"

    def test_a_row_that_is_locked_holds_up_no_other(self, claim_many, ledger, database):
        locked, fine = (ledger.request(exclusive=False) for _ in range(2))
        with database.begin() as connection:
            connection.exec_driver_sql(f"SELECT 1 FROM rota_runs WHERE id = {locked} FOR UPDATE")

            assert [lease.run_id for lease in claim_many(locked, fine)] == [fine]

    def test_a_process_without_a_lease_claims_nothing(self, claim_many, ledger, process, database):
        run_id = ledger.request(exclusive=False)
        process.expire(database)

        assert claim_many(run_id) == []
        assert ledger.run(run_id).state == "queued"

    @pytest.mark.parametrize(("state", "attempt"), [("queued", 0), ("retrying", 2)])
    def test_what_is_given_up_is_as_if_it_had_not_been_claimed(self, claim_many, ledger, database, state, attempt):
        run_id = ledger.request(exclusive=False, state=state, attempt=attempt)
        claimed = claim_many(run_id)
        with databases.autocommit(database) as connection:
            claims.unclaim_many(connection, claimed)

        row = ledger.run(run_id)
        assert (row.state, row.attempt, row.process_id, row.token) == (state, attempt, None, None)
        assert len(claim_many(run_id)) == 1

    def test_who_has_lost_a_lease_cannot_give_it_up(self, claim_many, ledger, database, start_process):
        run_id = ledger.request(exclusive=False)
        (lost,) = claim_many(run_id)
        ledger.do("UPDATE rota_runs SET state = 'retrying', process_id = NULL WHERE id = :id", id=run_id)
        (good,) = claim_many(run_id, process_id=start_process().id)
        with databases.autocommit(database) as connection:
            claims.unclaim_many(connection, [lost])

        assert (ledger.run(run_id).state, ledger.run(run_id).token) == ("running", good.token)


class TestSuccesses:
    """One statement records the successes whose leases are valid."""

    def test_all_are_recorded(self, claim_many, succeed_many, ledger):
        claimed = claim_many(*[ledger.request(exclusive=False) for _ in range(10)])

        assert succeed_many(*claimed) == dict.fromkeys((lease.run_id for lease in claimed), False)
        assert {(row.state, row.result, row.process_id) for row in ledger.runs("work")} == {("succeeded", 1, None)}

    def test_a_lost_lease_among_them_is_not(self, claim_many, succeed_many, ledger, start_process):
        good, lost = claim_many(*[ledger.request(exclusive=False) for _ in range(2)])
        ledger.do("UPDATE rota_runs SET state = 'retrying', process_id = NULL WHERE id = :id", id=lost.run_id)
        claim_many(lost.run_id, process_id=start_process().id)

        assert succeed_many(good, lost) == {good.run_id: False}
        assert ledger.run(lost.run_id).state == "running"

    def test_all_are_though_the_lease_is_late_while_nobody_else_has_them(
        self, claim_many, succeed_many, ledger, process, database
    ):
        claimed = claim_many(*[ledger.request(exclusive=False) for _ in range(2)])
        process.expire(database)

        assert succeed_many(*claimed) == dict.fromkeys((lease.run_id for lease in claimed), False)
        assert {row.state for row in ledger.runs("work")} == {"succeeded"}


class Told:
    """Records the calls of a completion."""

    def __init__(self):
        self.outcomes = {}

    def of(self, lease, result=None):
        return Completion(
            lease, result, lambda status, _error, _is_awaited: self.outcomes.update({lease.run_id: status})
        )


class TestCompletions:
    """The thread that records successes."""

    @pytest.fixture
    def completions(self, database, process):
        made = Completions(database, Member(process.id))
        yield made
        made.stop()

    def test_each_is_told_once_its_success_is_in_the_ledger(self, completions, claim_many, ledger):
        told = Told()
        claimed = claim_many(*[ledger.request(exclusive=False) for _ in range(500)])
        for lease in claimed:
            completions.add(told.of(lease))

        eventually(lambda: len(told.outcomes) == 500, within=10)
        assert set(told.outcomes.values()) == {"succeeded"}
        assert set(ledger.states("work")) == {"succeeded"}

    def test_they_wait_for_a_database_that_is_away(self, completions, claim_many, ledger):
        told = Told()
        (lease,) = claim_many(ledger.request(exclusive=False))
        ledger.do("ALTER TABLE rota_runs RENAME TO rota_runs_away")
        try:
            completions.add(told.of(lease))
            completions.flush(0.3)
            assert told.outcomes == {}
        finally:
            ledger.do("ALTER TABLE rota_runs_away RENAME TO rota_runs")

        eventually(lambda: told.outcomes == {lease.run_id: "succeeded"}, within=10)

    def test_what_a_former_registration_claimed_is_lost(self, database, claim_many, ledger, start_process):
        told, present = Told(), start_process()
        completions = Completions(database, Member(present.id))
        (lease,) = claim_many(ledger.request(exclusive=False))
        completions.add(told.of(lease))
        completions.stop()

        assert told.outcomes == {lease.run_id: "lost"}
        assert ledger.run(lease.run_id).state == "running"

    def test_one_that_postgresql_refuses_ends_and_all_others_are_recorded(self, completions, claim_many, ledger):
        told = Told()
        claimed = claim_many(*[ledger.request(exclusive=False) for _ in range(200)])
        results = {claimed[70].run_id: "[" * 30_000 + "]" * 30_000, claimed[71].run_id: r'"\u0000"'}
        for lease in claimed:
            completions.add(told.of(lease, results.get(lease.run_id, "1")))

        eventually(lambda: len(told.outcomes) == 200, within=20)
        assert {run_id for run_id, state in told.outcomes.items() if state != "succeeded"} == results.keys()
        for run_id in results:
            row = ledger.run(run_id)
            assert (told.outcomes[run_id], row.state, row.reason, row.failures) == ("dead", "dead", "result", 1)
            assert row.error.startswith("BadResult: PostgreSQL refuses the result: ")
        assert Counter(ledger.states("work")) == {"succeeded": 198, "dead": 2}

    def test_one_that_is_refused_for_no_known_reason_is_tried_a_while_and_holds_up_no_other(
        self, completions, claim_many, ledger, monkeypatch
    ):
        monkeypatch.setattr(completions, "again_seconds", 0.01)
        ledger.do("""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = 'XX000'; END $$""")
        ledger.do("""
            CREATE TRIGGER refuse BEFORE UPDATE ON rota_runs FOR EACH ROW
            WHEN (new.state = 'succeeded' AND new.result = '13') EXECUTE FUNCTION refuse()""")
        told = Told()
        odd, *others = claim_many(*[ledger.request(exclusive=False) for _ in range(20)])
        try:
            for lease in [odd, *others]:
                completions.add(told.of(lease, "13" if lease is odd else "1"))
            eventually(lambda: len(told.outcomes) == 20, within=20)
        finally:
            ledger.do("DROP FUNCTION refuse CASCADE")

        assert told.outcomes == {odd.run_id: "dead", **{lease.run_id: "succeeded" for lease in others}}
        assert "not this one" in ledger.run(odd.run_id).error

    def test_stopping_records_what_is_left(self, database, process, claim_many, ledger):
        told, completions = Told(), Completions(database, Member(process.id))
        for lease in claim_many(*[ledger.request(exclusive=False) for _ in range(300)]):
            completions.add(told.of(lease))
        completions.stop()

        assert len(told.outcomes) == 300
        assert not completions.has_room


@dataclass
class Message:
    """A message that belongs to a run."""

    end: Callable[[], None] = pytest.fail
    lease: Lease | None = None

    def worked(self, seconds):
        assert seconds >= 0


class TestExecutor:
    """Which runs are recorded together, and which one by one."""

    @pytest.fixture
    def together(self, executor, database):
        completions = Completions(database, executor.membership)
        yield Executor(database, executor.membership, executor.claims.worker, completions=completions)
        completions.stop()

    def test_one_that_left_nothing_in_its_session_ends_when_it_is_recorded(self, together, ledger):
        ended = threading.Event()
        work = job("work", overlap="allow")(lambda run: None)

        state = together.execute(work, ledger.request(exclusive=False), carried=Message(ended.set))

        assert state == RECORDING
        assert ended.wait(10)
        assert ledger.states("work") == ["succeeded"]

    def test_without_a_thread_to_record_it_a_success_is_a_success(self, together, ledger):
        work = job("work", overlap="allow")(lambda run: None)
        together.execute(work, ledger.request())  # the thread then has other work
        ended = threading.Event()
        with no_threads_to_give():
            together.execute(work, ledger.request(exclusive=False), carried=Message(ended.set))
            together.execute(work, ledger.request(exclusive=False), carried=Message(ended.set))

        assert ended.is_set()
        assert {(run.state, run.attempt, run.failures) for run in ledger.runs("work")} == {("succeeded", 1, 0)}

    def test_one_that_worked_in_its_session_is_recorded_before_it_returns(self, together, ledger):
        work = job("work", overlap="allow")(lambda run: leave(run.session, "done"))

        state = together.execute(work, ledger.request(exclusive=False), carried=Message(pytest.fail))

        assert state == "succeeded"
        assert ledger.states("work") == ["succeeded"]

    def test_the_run_that_waits_for_one_of_a_batch_is_woken(self, together, ledger, monkeypatch):
        monkeypatch.setattr(together.wakes, "parked", lambda *_: None)  # only the end of the first run wakes the second
        work = job("work", overlap="wait")(lambda run: None)
        first, second = ledger.request(key="a"), ledger.request(key="a")
        (lease,) = together.claims.claim_ahead([(first, "work")])
        assert together.execute(work, second) == "waiting"

        assert together.execute(work, first, carried=Message(lambda: None, lease)) == RECORDING

        eventually(lambda: ledger.run(second).sent_at is None)  # no process of this test sends messages

    def test_a_failure_is_recorded_before_it_returns(self, together, ledger):
        @job("work", overlap="allow", max_retries=1)
        def work(run):
            raise RuntimeError("failed on purpose")

        assert together.execute(work, ledger.request(exclusive=False), carried=Message(pytest.fail)) == "retrying"

    def test_a_lease_that_is_handed_in_is_not_claimed_again(self, together, ledger):
        work = job("work", overlap="allow")(lambda run: {"attempt": run.attempt})
        run_id = ledger.request(exclusive=False)
        (lease,) = together.claims.claim_ahead([(run_id, "work")])

        ended = threading.Event()
        assert together.execute(work, run_id, carried=Message(ended.set, lease)) == RECORDING
        assert ended.wait(10)
        assert ledger.run(run_id).result == {"attempt": 1}


class TestWorker:
    """A worker, from the messages to their acknowledgements."""

    def test_hundreds_of_short_runs_each_run_once(self, serve, ledger, database):
        heard = Counter()
        service = serve(job("work", overlap="allow")(lambda run: heard.update([run.id])))
        with Session(database) as session, session.begin():
            run_ids = enqueue_many(session, "work", [{}] * 900)  # as many as may wait in Redis
        service.work(threads=4)

        eventually(lambda: service.waiting() == 0 and service.fetched() == 0, within=60)
        assert heard == Counter(run_ids)
        assert Counter(ledger.states("work")) == {"succeeded": 900}
        assert {row.attempt for row in ledger.runs("work")} == {1}

    def test_a_worker_that_stops_leaves_no_claim_that_it_has_not_begun(self, serve, ledger, database):
        go_on, begun = threading.Event(), Counter()

        @job("work", overlap="allow", soft_limit=timedelta(minutes=1))
        def work(run):
            begun[run.id] += 1
            if begun.total() > 600:
                assert go_on.wait(30)

        service = serve(work)
        with Session(database) as session, session.begin():
            enqueue_many(session, "work", [{}] * 1000)
        worker = service.work(threads=4)
        eventually(lambda: begun.total() == 604, within=30)
        stopping = threading.Thread(target=worker.stop, kwargs={"timeout": 20_000})
        stopping.start()

        eventually(lambda: ledger.value("SELECT count(*) FROM rota_runs WHERE state = 'running'") == 4, within=20)
        go_on.set()
        stopping.join(30)
        assert Counter(ledger.states("work")) == {"succeeded": 604, "queued": 396}
        assert service.waiting() == 396
