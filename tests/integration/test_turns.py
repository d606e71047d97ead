"""I6: runs of one job and key that may not overlap. Slots are skipped; requests wait and start in order."""

import threading
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core import database as databases
from core import enqueue, every, job
from core.dispatcher.turns import TurnKeeper
from core.ledger import due, runs, slots, turns
from core.ledger.claims import Verdict
from core.ledger.models import State
from core.ledger.runs import Failure
from core.ledger.turns import Turn
from core.observability.events import RunNotWoken, RunSkipped, RunWaits
from core.worker.wakes import Wakes
from tests.support.emitted import emitted
from tests.support.eventually import eventually
from tests.support.racing import race

START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def autocommit(database):
    with databases.autocommit(database) as connection:
        yield connection


@pytest.fixture
def claim(database, process):
    return partial(process.claim, database)


def is_parked(ledger, run_id):
    return ledger.value("SELECT coalesce(sent_at = 'infinity', false) FROM rota_runs WHERE id = :id", id=run_id)


class TestRequests:
    """A request is never skipped because of another run of its job."""

    def test_requests_of_one_key_run_one_after_another_in_order(self, claim, ledger, autocommit):
        asked = [ledger.request(key="a") for _ in range(5)]
        for run_id in reversed(asked[1:]):
            assert claim(run_id)[0] == Verdict.WAITING
            assert is_parked(ledger, run_id)

        served = []
        found = asked[0]
        while found:
            _, lease = claim(found)
            served.append(lease.run_id)
            assert runs.succeed(autocommit, lease, None) is (len(served) < 5)
            woken = turns.wake(autocommit, [Turn("work", "a")], carried=True)
            found = woken[0].run_id if woken else None

        assert served == asked

    def test_a_run_that_comes_first_is_not_overtaken_while_its_message_is_on_the_way(self, claim, ledger):
        first, second = ledger.request(key="a"), ledger.request(key="a")

        assert claim(second)[0] == Verdict.WAITING
        assert claim(first)[0] == Verdict.RUNNING

    def test_the_order_is_that_of_due_times(self, claim, ledger):
        late, early = ledger.request(key="a"), ledger.request(key="a")
        ledger.do("UPDATE rota_runs SET due_at = due_at - interval '1 minute' WHERE id = :id", id=early)

        assert claim(late)[0] == Verdict.WAITING
        assert claim(early)[0] == Verdict.RUNNING

    def test_a_run_that_is_not_due_yet_is_in_nobodys_way(self, claim, ledger):
        delayed, present = ledger.request(key="a"), ledger.request(key="a")
        ledger.do("UPDATE rota_runs SET due_at = due_at + interval '1 hour' WHERE id = :id", id=delayed)

        assert claim(present)[0] == Verdict.RUNNING

    def test_other_keys_do_not_wait(self, claim, ledger):
        assert [claim(ledger.request(key=key))[0] for key in "ab"] == [Verdict.RUNNING] * 2

    def test_a_request_waits_behind_a_slot_and_is_not_skipped(self, claim, ledger):
        claim(ledger.request(slot=START))

        assert claim(ledger.request())[0] == Verdict.WAITING

    def test_a_run_handed_back_uncounted_stays_first(self, claim, ledger, autocommit, process):
        first, second = ledger.request(key="a"), ledger.request(key="a")
        claim(first)
        claim(second)

        runs.release(autocommit, process.id, "its worker was stopped")

        assert claim(second)[0] == Verdict.WAITING
        assert claim(first)[0] == Verdict.RUNNING

    def test_a_counted_failure_with_a_delay_gives_up_its_place(self, claim, ledger, autocommit):
        first, second = ledger.request(key="a"), ledger.request(key="a")
        _, lease = claim(first)
        claim(second)

        runs.fail(autocommit, lease, Failure(State.RETRYING, "error", "boom", MINUTE))

        assert [run.run_id for run in turns.wake(autocommit, [Turn("work", "a")], carried=True)] == [second]
        assert claim(second)[0] == Verdict.RUNNING

    def test_the_head_of_a_key_has_the_highest_priority_that_waits_behind_it(self, claim, ledger, autocommit):
        first, second, third = (ledger.request(key="a", priority=priority) for priority in (0, 1, 7))
        _, lease = claim(first)
        claim(second)
        claim(third)
        runs.succeed(autocommit, lease, None)

        (woken,) = turns.wake(autocommit, [Turn("work", "a")], carried=True)

        assert (woken.run_id, woken.priority) == (second, 7)
        assert ledger.run(second).priority == 7


class TestSlots:
    """Slots are skipped, unless the job has ``overlap="wait"``."""

    def test_a_slot_is_skipped_while_an_earlier_slot_is_being_retried(self, claim, ledger, autocommit):
        _, lease = claim(ledger.request(slot=START))
        runs.fail(autocommit, lease, Failure(State.RETRYING, "error", "boom", 5 * MINUTE))
        slot = ledger.request(slot=START + MINUTE)

        assert claim(slot)[0] == Verdict.BEHIND

        assert (ledger.run(slot).state, ledger.run(slot).reason) == ("skipped", "retrying")

    def test_a_retried_request_does_not_silence_slots(self, claim, ledger, autocommit):
        _, lease = claim(ledger.request())
        runs.fail(autocommit, lease, Failure(State.RETRYING, "error", "boom", 5 * MINUTE))

        assert claim(ledger.request(slot=START))[0] == Verdict.RUNNING

    def test_the_retry_itself_runs(self, claim, ledger, autocommit):
        first = ledger.request(slot=START)
        _, lease = claim(first)
        runs.fail(autocommit, lease, Failure(State.RETRYING, "error", "boom"))

        assert claim(first)[0] == Verdict.RUNNING

    def test_a_waiting_slot_does_not_wait_for_the_retry_of_an_earlier_one(self, claim, ledger, autocommit):
        retried = ledger.request(slot=START, due_at=START)
        _, lease = claim(retried)
        runs.fail(autocommit, lease, Failure(State.RETRYING, "error", "boom", timedelta(milliseconds=1)))
        waiting = ledger.request(slot=START + MINUTE, due_at=START + MINUTE)

        assert claim(waiting, gives_way=False)[0] == Verdict.RUNNING
        assert claim(retried, gives_way=False)[0] == Verdict.WAITING

    def test_a_waiting_slot_replaces_an_older_one(self, run_job, ledger, claim, autocommit, caplog):
        caplog.set_level("DEBUG", "rota")
        waiting = job("work", schedule=every(minutes=1), overlap="wait")(lambda run: None)
        _, lease = claim(ledger.request(slot=START))
        older, newer = (ledger.request(slot=START + each * MINUTE, due_at=START + each * MINUTE) for each in (1, 2))

        for run_id in (older, newer):
            assert run_job.executor.execute(waiting, run_id) == Verdict.WAITING
        eventually(lambda: emitted(caplog, "run.skipped"), within=20)

        assert (ledger.run(older).state, ledger.run(older).reason) == ("skipped", "superseded")
        assert ledger.run(newer).state == "queued"
        assert emitted(caplog, "run.waits") == [RunWaits("work", older), RunWaits("work", newer)]
        assert emitted(caplog, "run.skipped") == [RunSkipped("work", older, "superseded")]
        runs.succeed(autocommit, lease, None)
        assert run_job.executor.execute(waiting, newer) == State.SUCCEEDED

    def test_a_slot_that_was_tried_is_missed_only_at_the_end_of_its_grace(self, claim, ledger, autocommit):
        slow = job("work", schedule=every(minutes=1), overlap="wait", misfire="skip", misfire_grace=MINUTE)
        now = ledger.value("SELECT clock_timestamp()")
        blocker = ledger.request(slot=now - 5 * MINUTE)
        claim(blocker)
        young, old = (ledger.request(slot=now - age, due_at=now - age) for age in (0.8 * MINUTE, 2 * MINUTE))
        ledger.do("UPDATE rota_runs SET reason = 'overlap', sent_at = 'infinity' WHERE id IN (:a, :b)", a=young, b=old)

        assert slots.miss(autocommit, [slow(lambda run: None)], 30) == [("work", "overlap")]
        assert (ledger.run(young).state, ledger.run(old).state) == ("queued", "missed")


class TestWaking:
    """The process whose run ends wakes the next run. The dispatcher wakes the others."""

    def test_ten_threads_and_a_hundred_requests_of_three_keys_never_overlap_and_keep_their_order(self, serve, ledger):
        at_work, overlapped, order = set(), [], []
        lock = threading.Lock()

        def body(run):
            with lock:
                if run.key in at_work:
                    overlapped.append(run.id)
                at_work.add(run.key)
                order.append((run.key, run.id))
            run.session.connection()
            with lock:
                at_work.discard(run.key)

        service = serve(job("work", overlap="wait", retry_delay=timedelta(0))(body))
        service.work(threads=10)
        with Session(ledger.engine) as session, session.begin():
            asked = [enqueue(session, "work", key="abc"[number % 3]) for number in range(100)]

        eventually(lambda: ledger.states("work") == ["succeeded"] * 100, within=60)

        assert not overlapped
        assert sorted(order, key=lambda each: each[0]) == sorted(zip_keys(asked), key=lambda each: each[0])

    def test_the_dispatcher_wakes_a_run_that_nobody_woke(self, claim, ledger, autocommit):
        _, lease = claim(ledger.request(key="a"))
        left = ledger.request(key="a")
        claim(left)
        assert TurnKeeper().look(autocommit) == 0
        runs.succeed(autocommit, lease, None)

        assert TurnKeeper().look(autocommit) == 1

        assert ledger.run(left).sent_at is None

    def test_ten_thousand_that_wait_for_one_key_are_one_turn(self, ledger, autocommit):
        ledger.do("""
            INSERT INTO rota_runs (job, key, queue, sent_at, reason)
            SELECT 'work', 'a', 'default', 'infinity', 'overlap' FROM generate_series(1, 10000)""")

        assert turns.parked(autocommit, Turn("", ""), 100) == [Turn("work", "a")]
        assert due.overdue_lanes(autocommit, 0) == {}
        assert not due.is_any_due(autocommit)
        assert len(turns.wake(autocommit, [Turn("work", "a")], carried=False)) == 1

    def test_many_turns_are_looked_at_in_parts(self, ledger, autocommit, monkeypatch):
        monkeypatch.setattr("core.dispatcher.turns.AT_ONCE", 4)
        ledger.do("""
            INSERT INTO rota_runs (job, key, queue, sent_at, reason)
            SELECT 'work', key::text, 'default', 'infinity', 'overlap' FROM generate_series(1, 10) AS key""")
        keeper = TurnKeeper()

        assert [keeper.look(autocommit) for _ in range(4)] == [4, 4, 2, 0]

    def test_racing_wakes_wake_one(self, database, ledger):
        for _ in range(10):
            for _ in range(3):
                ledger.request(key="a", sent_at=datetime.max.replace(tzinfo=UTC), reason="overlap")
            ledger.do("UPDATE rota_runs SET sent_at = 'infinity'")

            def wake():
                with databases.autocommit(database) as connection:
                    return turns.wake(connection, [Turn("work", "a")], carried=True)

            assert sum(map(len, race(*[wake] * 6))) == 1
            ledger.do("DELETE FROM rota_runs")

    def test_without_postgresql_it_is_said_and_left_to_the_dispatcher(self, caplog):
        wakes = Wakes(databases.connect("postgresql://nobody@127.0.0.1:1/nowhere"))

        wakes.deal_with([Turn("work", "a")])

        (said,) = emitted(caplog, "run.not_woken")
        assert isinstance(said, RunNotWoken)
        assert said.runs == 1


def zip_keys(asked):
    return [("abc"[number % 3], run_id) for number, run_id in enumerate(asked)]


class TestTheReleaseBefore:
    """Claims of the previous release, which would skip a request that meets another run."""

    OLD_SKIP = """
        UPDATE rota_runs SET state = 'skipped', reason = 'overlap', finished_at = clock_timestamp() WHERE id = :id
    """

    def test_cannot_skip_a_request(self, ledger):
        run_id = ledger.request()

        with pytest.raises(IntegrityError, match="rota_runs_requests_wait"):
            ledger.do(self.OLD_SKIP, id=run_id)

        assert ledger.run(run_id).state == "queued"

    def test_may_skip_a_slot(self, ledger):
        assert ledger.do(self.OLD_SKIP, id=ledger.request(slot=START)) == 1
