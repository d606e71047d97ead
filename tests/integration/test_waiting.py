"""``enqueue(…, unless="waiting")`` inserts no run if a request is waiting already."""

import itertools
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import database as databases
from core import enqueue, every, job
from core.clock import system_clock
from core.errors import BadArguments
from core.ledger import direct, due, shares, turns
from core.ledger.carrier import OutgoingRun
from core.ledger.claims import Verdict
from core.ledger.turns import Turn
from core.observability.events import RunLocked
from core.worker import wakes
from tests.support.effects import leave
from tests.support.emitted import emitted
from tests.support.eventually import eventually
from tests.support.racing import race

HOUR = timedelta(hours=1)


def nothing(run): ...


free = job("free")(nothing)
alone = job("alone", overlap="wait")(nothing)
#: A statement that waits for a lock fails after this time.
IMPATIENT = text("SET LOCAL lock_timeout = '1s'")


@pytest.fixture(autouse=True)
def jobs(use_jobs):
    return use_jobs(free, alone, job("fast", ledger=False)(nothing), job("ticking", schedule=every(hours=1))(nothing))


@pytest.fixture
def sessions(database):
    """Yield a function that opens transactions. They are rolled back at the end."""
    opened = []

    def begin(**options):
        session = Session(database, **options)
        opened.append(session)
        session.execute(IMPATIENT)
        return session

    yield begin
    for session in opened:
        session.close()


@pytest.fixture
def ask(sessions):
    """Request a run, unless one is waiting, in a transaction of its own. Return the id."""

    def ask(name="free", **options):
        with sessions() as session:
            run_id = enqueue(session, name, **{"unless": "waiting", **options})
            session.commit()
        return run_id

    return ask


@pytest.fixture
def autocommit(database):
    with databases.autocommit(database) as connection:
        connection.exec_driver_sql("SET lock_timeout = '1s'")
        yield connection
        connection.exec_driver_sql("RESET lock_timeout")


class TestFinding:
    @pytest.mark.parametrize("name", ["free", "alone"])
    @pytest.mark.parametrize("key", ["", "a"])
    @pytest.mark.parametrize("sent_at", [None, "now", "infinity"])
    def test_a_waiting_run_of_the_job_and_key_is_enough(self, ask, ledger, name, key, sent_at):
        first = ask(name, key=key)
        ledger.do("UPDATE rota_runs SET sent_at = :sent_at", sent_at=sent_at)

        assert ask(name, key=key) == first
        assert len(ledger.runs(name)) == 1

    def test_a_transaction_finds_its_own(self, sessions, ledger):
        with sessions() as session:
            asked = {enqueue(session, "free", key="a", unless="waiting") for _ in range(3)}
            session.commit()

        assert len(asked) == len(ledger.runs("free")) == 1

    def test_a_job_asks_for_its_next_run_once(self, use_jobs, run_job, ledger):
        def function(run):
            return [run.enqueue("asking", key="a", unless="waiting") for _ in range(2)]

        asking = job("asking")(function)
        use_jobs(asking)
        first = run_job(asking, key="a")

        assert first.result == [first.id + 1] * 2

    def test_with_a_delay_many_requests_give_one_run_after_it(self, ask, ledger):
        first = ask(key="a", delay=HOUR)
        due_at = ledger.run(first).due_at

        assert {ask(key="a", delay=HOUR) for _ in range(5)} == {first}
        assert ledger.run(first).due_at == due_at

    def test_without_unless_each_request_gives_a_run(self, ask):
        assert ask(key="a") != ask(key="a", unless=None)

    @pytest.mark.parametrize(
        "other",
        [
            {"state": "running", "process_id": 1, "token": 1, "attempt": 1},
            {"state": "retrying", "attempt": 1},
            {"state": "succeeded", "finished_at": "now"},
            {"slot": datetime(2026, 1, 1, tzinfo=UTC)},
            {"due_at": datetime(2099, 1, 1, tzinfo=UTC)},
            {"key": "b"},
            {"job": "alone"},
        ],
        ids=lambda other: next(iter(other)),
    )
    def test_another_run_is_not_enough(self, ask, ledger, other):
        """The existing run has begun, may be skipped, is due too late, or has another job or key."""
        found = ledger.request(**{"job": "free", "key": "a", "exclusive": False, **other})

        assert ask(key="a") != found

    def test_the_newest_is_taken_so_that_older_ones_can_start(self, ask, ledger):
        older, newer = ask(key="a", unless=None), ask(key="a", unless=None)

        assert ask(key="a") == newer > older

    def test_the_deadline_becomes_the_later_one(self, ask, ledger):
        until = system_clock() + HOUR
        first = ask(key="a", expires=until)

        assert ask(key="a", expires=until - HOUR / 2) == first
        assert ledger.run(first).expires_at == until
        assert ask(key="a", expires=until + HOUR) == first
        assert ledger.run(first).expires_at == until + HOUR
        assert ask(key="a", expires=3 * HOUR) == first
        assert ledger.run(first).expires_at > until + HOUR
        assert ask(key="a") == first
        assert ledger.run(first).expires_at is None

    def test_the_priority_becomes_the_larger_one_and_the_deadline_stays(self, ask, ledger):
        first = ask(key="a", priority=3)

        assert ask(key="a", priority=1) == first
        assert ledger.run(first).priority == 3
        assert ask(key="a", priority=9, expires=HOUR) == first
        assert (ledger.run(first).priority, ledger.run(first).expires_at) == (9, None)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"unless": "queued"}, "unless='queued' must be 'waiting'"),
            ({"unless": True}, "unless=True must be 'waiting'"),
            ({"name": "fast"}, "on the fast lane"),
            ({"key": 5}, "key must be a string"),
            ({"delay": -HOUR}, "delay="),
            ({"priority": 11}, "priority=11 must be a whole number, 0 to 9"),
            ({"args": {"region": "uk"}}, "region"),
        ],
    )
    def test_a_bad_request_is_refused_also_if_another_one_waits(self, ask, options, words):
        ask()

        with pytest.raises(BadArguments, match=words):
            ask(**options)


class TestLocking:
    """The run that was found starts after the caller's commit, and no transaction waits for another one."""

    @pytest.fixture
    def found(self, sessions, ask, ledger):
        """A waiting run, and an open transaction that has found it."""

        def found(name="free", key="a", sent_at=None):
            run_id = ask(name, key=key)
            ledger.do("UPDATE rota_runs SET sent_at = :sent_at, reason = 'overlap'", sent_at=sent_at)
            session = sessions()
            assert enqueue(session, name, key=key, unless="waiting") == run_id
            return run_id, session

        return found

    @pytest.mark.parametrize("end", [Session.commit, Session.rollback])
    def test_a_claim_passes_over_it_until_that_transaction_ends(self, found, process, database, end):
        run_id, session = found()

        assert process.claim(database, run_id, "free") == (Verdict.LOCKED, None)
        end(session)
        assert process.claim(database, run_id, "free")[0] == Verdict.RUNNING

    @pytest.mark.parametrize("end", [Session.commit, Session.rollback])
    @pytest.mark.parametrize("name", ["free", "alone"])
    def test_a_run_that_was_passed_over_is_sent_again_when_that_transaction_ends(
        self, found, executor, ledger, end, name, monkeypatch, caplog
    ):
        caplog.set_level("DEBUG", "rota")
        monkeypatch.setattr(wakes, "LOCKED_AGAIN_SECONDS", 0.05)
        run_id, session = found(name, sent_at="now")

        assert executor.execute({"free": free, "alone": alone}[name], run_id) == Verdict.LOCKED
        assert emitted(caplog, "run.locked") == [RunLocked(name, run_id)]
        assert ledger.run(run_id).sent_at is not None
        end(session)

        eventually(lambda: ledger.run(run_id).sent_at is None, within=10)
        assert ledger.run(run_id).state == "queued"
        executor.wakes.stop()

    @pytest.mark.parametrize("name", ["free", "alone"])
    @pytest.mark.parametrize("key", ["", "a"])
    def test_if_another_transaction_has_locked_it_another_run_is_requested(self, found, ask, ledger, name, key):
        run_id, _ = found(name, key)

        assert ask(name, key=key) != run_id
        assert len(ledger.runs(name)) == 2

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    def test_a_transaction_with_an_older_snapshot_requests_another_run(self, ask, ledger, database, level):
        run_id = ask(key="a")
        with Session(database.execution_options(isolation_level=level)) as session:
            session.execute(text("SELECT 1 FROM rota_runs"))
            ledger.do("UPDATE rota_runs SET sent_at = clock_timestamp()")
            assert enqueue(session, "free", key="a", unless="waiting") != run_id
            session.commit()

    def test_nothing_of_the_dispatcher_waits_for_it(self, found, autocommit, ledger):
        run_id, session = found("alone")

        assert shares.take(autocommit, "default", ["alone"], shares.Turns(), batch=10) == []
        assert due.move(autocommit, "default", {"alone": "other"}) == 0
        due.release(autocommit, [OutgoingRun(run_id, "alone", "default")])
        assert due.release_unlocked(autocommit, [run_id]) == []  # the run had not been sent
        session.commit()
        assert [run.run_id for run in shares.take(autocommit, "default", ["alone"], shares.Turns(), batch=10)] == [
            run_id
        ]
        assert due.move(autocommit, "default", {"alone": "other"}) == 1

    def test_a_parked_run_is_woken_after_that_transaction(self, found, autocommit):
        run_id, session = found("alone", sent_at="infinity")

        assert turns.wake(autocommit, [Turn("alone", "a")], carried=False) == []
        session.commit()
        assert [run.run_id for run in turns.wake(autocommit, [Turn("alone", "a")], carried=False)] == [run_id]


class TestRace:
    """No update is lost: a run that starts after a commit sees its changes."""

    ASKERS = 100

    @pytest.mark.parametrize("name", ["free", "alone"])
    @pytest.mark.parametrize("key", ["", "a"])
    def test_every_update_is_seen_by_a_run_that_starts_after_it(
        self, use_jobs, database, executor, ledger, name, key, monkeypatch
    ):
        monkeypatch.setattr(wakes, "LOCKED_AGAIN_SECONDS", 0.05)
        seen = set()

        def function(run):
            seen.update(run.session.scalars(text("SELECT word FROM test_effects")))

        work = job(name, overlap="wait" if name == "alone" else "allow")(function)
        use_jobs(work)
        numbers, is_over = itertools.count(), threading.Event()

        def ask_often():
            while (number := next(numbers)) < self.ASKERS:
                with Session(database) as session:
                    leave(session, f"update {number}")
                    enqueue(session, name, key=key, unless="waiting")
                    session.execute(text("SELECT pg_sleep(0.01)"))  # time in which a run could start too early
                    session.rollback() if number % 10 == 9 else session.commit()

        def take_runs():
            while not is_over.is_set():
                with databases.autocommit(database) as connection:
                    began = connection.exec_driver_sql("SELECT clock_timestamp() - interval '1 hour'").scalar_one()
                    taken = direct.take(
                        connection, [name], ["default"], direct.Turns(), most=2, began=began, resend_seconds=60
                    )
                    turns.wake(connection, [Turn(name, key)], carried=False)
                for run in taken:
                    executor.execute(work, run.run_id)

        workers = [threading.Thread(target=take_runs, daemon=True) for _ in range(3)]
        for worker in workers:
            worker.start()
        try:
            race(*[ask_often] * 5)
            waiting = "SELECT count(*) FROM rota_runs WHERE state <> 'succeeded'"
            eventually(lambda: ledger.value(waiting) == 0, within=30)
        finally:
            is_over.set()
            for worker in workers:
                worker.join(30)
            executor.wakes.stop()

        assert seen == {f"update {number}" for number in range(self.ASKERS) if number % 10 != 9}
        assert len(ledger.runs(name)) <= self.ASKERS
