"""Runs with a priority are sent first; then the jobs of a queue have equal shares, and the keys of a job take turns."""

from collections import Counter
from datetime import timedelta

import pytest
import redis
from sqlalchemy.orm import Session

from core import database as databases
from core import enqueue, enqueue_many, job
from core.clock import system_clock
from core.dispatcher import sending, windows
from core.dispatcher.sending import Sharing
from core.dispatcher.windows import Windows
from core.ledger import direct, shares
from core.ledger.carrier import MOST_URGENT
from core.ledger.shares import OLDEST_EVERY, Turns
from core.transport.redis import rooms
from core.transport.redis.rooms import FEW

#: The size of the window in these tests.
FIRST = 1000

LATER = system_clock() + timedelta(days=1)


@job("work", overlap="allow")
def work(run, n: int = 0):
    pass


@job("other", overlap="allow")
def other(run):
    pass


@pytest.fixture
def autocommit(database):
    with databases.autocommit(database) as connection:
        yield connection


@pytest.fixture
def fill(ledger):
    """Insert many due runs of one job and key, a millisecond apart."""

    def fill(count, *, job="work", key="", priority=0, since=60):
        ledger.do(
            "INSERT INTO rota_runs (job, queue, key, priority, exclusive, due_at)"
            " SELECT :job, 'default', :key, :priority, false,"
            "        clock_timestamp() - make_interval(secs => :since) + n * interval '1 ms'"
            " FROM generate_series(1, :count) AS n",
            job=job,
            key=key,
            priority=priority,
            count=count,
            since=since,
        )

    return fill


@pytest.fixture
def tally(ledger):
    """Return the number of these runs for each job and key."""

    def tally(taken):
        rows = {row.id: row for row in ledger.rows("SELECT id, job, key FROM rota_runs")}
        return Counter((rows[each.run_id].job, rows[each.run_id].key) for each in taken)

    return tally


class TestUrgent:
    """Runs with a priority, which the dispatcher sends first."""

    @pytest.fixture
    def take(self, autocommit):
        def take(batch, jobs=("work",)):
            due = shares.due_urgent(autocommit, jobs).get("default", ())
            return [
                each.run_id for level in due for each in shares.take_urgent(autocommit, "default", level, batch=batch)
            ]

        return take

    def test_the_most_urgent_first_and_then_the_oldest(self, take, ledger):
        low, high, plain, higher, late = (ledger.request(priority=each) for each in (1, 5, 0, 9, 5))

        assert take(3) == [higher, high, late, low]
        assert take(3) == []
        assert ledger.run(plain).sent_at is None

    def test_what_is_not_due_or_of_another_job_or_queue_is_left(self, take, ledger):
        for unlike in (
            {"due_at": LATER},
            {"queue": "else"},
            {"state": "dead", "finished_at": LATER},
            {"sent_at": LATER},
        ):
            ledger.request(priority=9, **unlike)
        ledger.request("other", priority=9)

        assert take(10) == []

    def test_the_queues_with_urgent_runs_are_found(self, autocommit, ledger):
        ledger.request(priority=3)
        ledger.request("other", priority=7)
        ledger.request(queue="else", priority=0)
        ledger.request(queue="else", priority=9, due_at=LATER)

        found = shares.due_urgent(autocommit, ["work", "other"])

        assert found == {"default": [shares.Due(7, ["other"]), shares.Due(3, ["work"])]}

    def test_a_run_that_is_locked_does_not_hold_up_the_others(self, take, ledger, database):
        locked, free = ledger.request(priority=9), ledger.request(priority=1)
        with database.begin() as connection:
            connection.exec_driver_sql(f"SELECT 1 FROM rota_runs WHERE id = {locked} FOR UPDATE")

            assert take(2) == [free]


class TestTurns:
    """Runs without a priority."""

    @pytest.fixture
    def take(self, autocommit):
        turns = Turns()
        return lambda batch, *jobs: shares.take(autocommit, "default", jobs or ["work"], turns, batch=batch)

    def test_a_key_does_not_wait_for_the_backlog_of_another(self, take, fill, tally):
        fill(1000, key="a", since=600)
        fill(5, key="b")
        fill(1, key="c")

        assert tally(take(30)).keys() == {("work", "a"), ("work", "b"), ("work", "c")}

    def test_all_keys_get_the_same(self, take, fill, tally):
        for key in "abcde":
            fill(400, key=key, since=600 - ord(key))

        taken = tally([each for _ in range(10) for each in take(100)])

        assert sum(taken.values()) == 1000
        assert max(taken.values()) - min(taken.values()) <= 1000 / OLDEST_EVERY + 20

    def test_many_keys_have_their_turn_one_after_another(self, take, fill, tally):
        fill(1000, key="a", since=600)
        for number in range(50):
            fill(2, key=f"key {number:02}")

        taken = tally([each for _ in range(6) for each in take(20)])

        assert [taken["work", f"key {number:02}"] >= 1 for number in range(50)] == [True] * 50

    def test_runs_without_a_key_count_as_one_key(self, take, fill, tally):
        fill(300, since=600)
        fill(300, key="a")

        taken = tally([each for _ in range(4) for each in take(50)])

        assert taken["work", ""] >= 50
        assert taken["work", "a"] >= 50

    def test_one_in_ten_is_chosen_by_age(self, take, fill, tally):
        fill(100, key="zzz", since=600)
        for number in range(200):
            fill(2, key=f"key {number:03}")

        assert tally(take(100))["work", "zzz"] == 100 / OLDEST_EVERY

    def test_jobs_share_a_batch(self, take, fill, tally):
        fill(1000, key="a", since=600)
        fill(100, job="other")

        assert tally(take(20, "work", "other")) == {("work", "a"): 10, ("other", ""): 10}

    def test_jobs_take_turns_if_there_is_room_for_fewer_runs_than_jobs(self, take, fill, tally):
        fill(3, since=600)
        fill(3, job="other")

        assert [tally(take(1, "work", "other")) for _ in range(4)] == [
            {("other", ""): 1},
            {("work", ""): 1},
            {("other", ""): 1},
            {("work", ""): 1},
        ]

    def test_everything_is_taken_once(self, take, fill, ledger):
        fill(700)
        for key in "abc":
            fill(300, key=key)
        fill(10, key="urgent", priority=4)
        taken = []
        while batch := take(90):
            taken += [each.run_id for each in batch]

        assert len(taken) == len(set(taken)) == 1600
        assert len(ledger.rows("SELECT 1 FROM rota_runs WHERE sent_at IS NULL AND priority = 4")) == 10

    def test_keys_whose_runs_are_not_due_do_not_hide_those_that_are(self, take, fill, ledger, tally):
        fill(300, key="m", since=600)
        ledger.do(
            "INSERT INTO rota_runs (job, queue, key, exclusive, due_at) SELECT 'work', 'default', 'later ' || n, false,"
            " now() + interval '1 day' FROM generate_series(1, 3000) AS n"
        )

        assert sum(tally(take(100)).values()) == 100


class TestDirect:
    """Runs that threads take from the ledger without Redis."""

    @pytest.fixture
    def take(self, autocommit):
        turns = direct.Turns()
        began = autocommit.exec_driver_sql("SELECT clock_timestamp() - interval '1 hour'").scalar_one()
        return lambda most, *jobs: direct.take(
            autocommit, jobs or ["work"], ["default"], turns, most=most, began=began, resend_seconds=60
        )

    def test_the_most_urgent_first(self, take, ledger):
        low, high, plain, higher = (ledger.request(priority=each) for each in (1, 5, 0, 9))

        assert [each.run_id for _ in range(4) for each in take(1)] == [higher, high, low, plain]

    def test_one_in_ten_is_the_oldest(self, take, fill, tally):
        fill(100, since=600)
        fill(100, key="urgent", priority=9)

        assert tally([each for _ in range(50) for each in take(1)]) == {("work", "urgent"): 45, ("work", ""): 5}

    def test_jobs_and_keys_take_turns(self, take, fill, tally):
        fill(200, key="a", since=600)
        fill(20, key="b", since=500)
        fill(5, key="c")
        fill(20, job="other")

        taken = tally([each for _ in range(30) for each in take(1, "work", "other")])

        assert taken["other", ""] >= 12
        assert taken["work", "c"] >= 4
        assert taken["work", "b"] >= 4
        assert taken["work", "a"] <= 9

    def test_everything_is_taken_once(self, take, fill):
        fill(70)
        fill(30, priority=7)
        for key in "abc":
            fill(30, key=key)
        fill(20, job="other", key="a")
        taken = []
        while batch := take(7, "work", "other"):
            taken += [each.run_id for each in batch]

        assert len(taken) == len(set(taken)) == 210

    def test_a_lost_run_is_taken_again(self, take, ledger):
        lost = ledger.request(sent_at="2020-01-01T00:00:00Z")
        ledger.request(sent_at=LATER)

        assert [each.run_id for each in take(5)] == [lost]

    def test_two_takers_share_a_backlog(self, take, fill, ledger, database):
        fill(10)
        with database.begin() as connection:
            connection.exec_driver_sql("SELECT 1 FROM rota_runs ORDER BY due_at LIMIT 5 FOR UPDATE")

            assert len(take(5)) == 5


class TestRoom:
    """Only a limited number of messages waits in Redis."""

    @pytest.fixture
    def service(self, serve, monkeypatch):
        monkeypatch.setattr(rooms, "MOST_WAITING", FIRST)
        return serve(work, other)

    @pytest.fixture
    def send_due(self, autocommit, service, monkeypatch):
        monkeypatch.setattr(windows, "SAMPLE_SECONDS", float("inf"))  # windows keep their sizes
        sharing = Sharing(windows=Windows(FIRST))
        return lambda: sending.send_due(autocommit, ["work", "other"], service.carrier, sharing, seconds=60)

    def unsent(self, ledger):
        return len(ledger.rows("SELECT 1 FROM rota_runs WHERE sent_at IS NULL"))

    def test_the_dispatcher_sends_no_more_than_the_window(self, send_due, fill, service):
        fill(FIRST + 500)

        assert send_due() == FIRST
        assert send_due() == 0
        service.broker.redis_queues.fetch("default", 600)
        assert send_due() > 0

    def test_an_urgent_run_is_sent_though_the_window_is_full(self, send_due, fill, service, ledger):
        fill(FIRST + 500)
        send_due()
        urgent = ledger.request(priority=1)

        assert send_due() == 1
        assert service.carrier.oldest_urgent_runs("default", 1) == (True, [urgent])

    def test_an_urgent_run_is_sent_though_less_urgent_ones_have_filled_their_window(self, send_due, fill, service):
        fill(MOST_URGENT + 500, priority=1)
        assert send_due() == MOST_URGENT
        fill(3, priority=9)

        assert send_due() == 3

    def test_a_process_sends_no_more_itself_than_there_is_room_for(self, service, database, ledger, send_due):
        with Session(database) as session:
            ids = enqueue_many(session, "work", [{"n": n} for n in range(FIRST + 300)])
            session.commit()

        assert ids == sorted(ids)
        assert [row.args["n"] for row in ledger.runs("work")] == list(range(FIRST + 300))
        assert (service.waiting(), self.unsent(ledger)) == (FIRST, 300)
        service.broker.redis_queues.fetch("default", 800)
        assert send_due() == 300

    def test_many_requests_of_one_transaction_count_together(self, service, database, ledger):
        with Session(database) as session:
            for _ in range(4):
                enqueue_many(session, "work", [{"n": n} for n in range(FIRST // 2)])
            session.commit()

        assert service.waiting() == FIRST

    def test_while_more_is_due_a_request_waits_for_its_turn(self, service, database, ledger, fill, send_due):
        fill(FIRST + 500)
        send_due()
        with Session(database) as session:
            enqueue_many(session, "work", [{}] * (FEW + 1))
            session.commit()

        assert service.waiting() == FIRST
        assert self.unsent(ledger) == 500 + FEW + 1

    def test_an_urgent_request_is_sent_at_once_all_the_same(self, service, database, fill, send_due):
        fill(FIRST + 500)
        send_due()
        with Session(database) as session:
            run = enqueue(session, "work", priority=9)
            session.commit()

        assert service.carrier.oldest_urgent_runs("default", 9) == (True, [run])

    def test_many_urgent_requests_leave_some_to_the_dispatcher(self, service, database, ledger):
        with Session(database) as session:
            enqueue_many(session, "work", [{}] * (MOST_URGENT + 300), priority=9)
            session.commit()

        assert self.unsent(ledger) == 300
        assert service.waiting() == 0

    def test_a_request_is_left_to_the_dispatcher_while_redis_is_away(self, database, ledger, service, monkeypatch):
        def away(*_, **__):
            raise redis.ConnectionError("away on purpose")

        with monkeypatch.context() as patch, Session(database) as session:
            patch.setattr(service.broker.redis_queues, "window", away)
            enqueue_many(session, "work", [{}] * (FEW + 1))
            session.commit()

        assert self.unsent(ledger) == FEW + 1
