"""I4: due runs are sent, and runs whose messages were lost are sent again. Redis may lose all its data."""

import uuid

import pytest
import redis
from dramatiq.message import Message
from sqlalchemy.orm import Session

from core import database as databases
from core import enqueue, job
from core.dispatcher import sending
from core.ledger import due, operations, orphans
from core.observability.events import DispatcherSentAgain
from core.testing import registry_of
from tests.support.emitted import emitted
from tests.support.racing import race

#: In seconds. Enough to send all runs.
LONGEST = 60


@job("work", overlap="allow")
def work(run):
    pass


@job("fast", ledger=False)
def fast(run):
    pass


@job("elsewhere", queue="elsewhere")
def elsewhere(run):
    pass


@pytest.fixture
def service(serve):
    return serve(work, fast, elsewhere)


@pytest.fixture
def relaying(database):
    """The dispatcher's connection."""
    with databases.autocommit(database) as connection:
        yield connection


@pytest.fixture
def send_due(relaying, service):
    return lambda: sending.send_due(relaying, service.registry.jobs, service.carrier, seconds=LONGEST)


@pytest.fixture
def find_lost(relaying, service):
    return lambda: sending.find_lost(relaying, service.carrier, 5)


def sent_ago(ledger, run_id, seconds):
    ledger.do(
        "UPDATE rota_runs SET sent_at = clock_timestamp() - make_interval(secs => :ago) WHERE id = :id",
        id=run_id,
        ago=seconds,
    )


def put_message_for(service, run_id):
    """Put a message on the queue that names a run."""
    redis_id = uuid.uuid4().hex
    options = {"run_id": run_id, "redis_message_id": redis_id}
    message = Message("default", "work", (), {}, options, message_id=redis_id, message_timestamp=1)
    service.put(message.encode(), redis_id)


def unsent(ledger):
    return [row.id for row in ledger.rows("SELECT id FROM rota_runs WHERE sent_at IS NULL ORDER BY id")]


class TestSendDue:
    """Runs that are due and have not been sent."""

    def test_everything_due_is_sent_in_bulk_and_marked(self, send_due, service, ledger):
        ledger.do(
            "INSERT INTO rota_runs (job, queue) SELECT 'work', 'default' FROM generate_series(1, :count)",
            count=sending.BATCH * 2 + 7,
        )

        assert send_due() == sending.BATCH * 2 + 7

        assert service.waiting() == sending.BATCH * 2 + 7
        assert unsent(ledger) == []

    def test_nothing_is_sent_twice(self, send_due, service, ledger):
        ledger.request()

        assert [send_due(), send_due()] == [1, 0]
        assert service.waiting() == 1

    def test_what_is_not_due_is_not_sent(self, send_due, service, ledger):
        early = ledger.request()
        ledger.do("UPDATE rota_runs SET due_at = clock_timestamp() + interval '1 hour'")

        assert send_due() == 0
        assert unsent(ledger) == [early]

    @pytest.mark.parametrize("state", ["succeeded", "dead", "skipped", "missed", "orphaned"])
    def test_what_is_over_is_not_sent(self, send_due, ledger, state):
        ledger.request(state=state, finished_at="2026-01-01T00:00:00Z")

        assert send_due() == 0

    def test_a_due_retry_is_sent(self, send_due, service, ledger):
        ledger.request(state="retrying", attempt=1)

        assert send_due() == 1

    def test_runs_of_jobs_that_are_not_loaded_are_not_sent(self, send_due, service, ledger):
        """I1."""
        ledger.request("uninstalled")

        assert send_due() == 0
        assert service.waiting() == 0

    def test_each_run_goes_to_its_own_queue_with_a_message_of_its_own(self, send_due, service, ledger):
        here, there = ledger.request(), ledger.request("elsewhere", queue="elsewhere")
        send_due()

        assert service.carrier.oldest_runs("default") == (True, [here])
        assert service.carrier.oldest_runs("elsewhere") == (True, [there])

    def test_while_redis_is_away_runs_are_given_back(self, relaying, service, ledger, carrier, caplog):
        run_id = ledger.request()
        carrier.is_away = True

        assert sending.send_due(relaying, service.registry.jobs, carrier) == 0

        assert unsent(ledger) == [run_id]
        assert [event.runs for event in emitted(caplog, "dispatcher.not_sent")] == [1]

    def test_runs_are_given_back_only_while_they_wait(self, relaying, ledger, process, database):
        class Slow:
            carries = True

            def send(self, outgoing):
                process.lease(database, outgoing[0].run_id)
                raise redis.ConnectionError("after it was delivered")

        run_id = ledger.request()
        sending.send_due(relaying, registry_of(work).jobs, Slow())

        assert (ledger.run(run_id).state, ledger.run(run_id).sent_at is None) == ("running", False)

    def test_a_backlog_of_one_queue_does_not_delay_the_others(self, relaying, service, ledger):
        ledger.do("INSERT INTO rota_runs (job, queue) SELECT 'work', 'default' FROM generate_series(1, 3000)")
        ledger.request("elsewhere", queue="elsewhere")

        sent = sending.send_due(relaying, service.registry.jobs, service.carrier, seconds=0)

        assert sent <= sending.BATCH
        assert service.waiting("elsewhere") == 1

    def test_a_backlog_of_one_job_does_not_delay_the_others_of_its_queue(self, relaying, service, ledger):
        ledger.do("INSERT INTO rota_runs (job, queue) SELECT 'work', 'default' FROM generate_series(1, 3000)")
        run_id = ledger.request("elsewhere", queue="default")

        sending.send_due(relaying, service.registry.jobs, service.carrier, seconds=0)

        assert run_id not in unsent(ledger)

    def test_a_turn_is_over_soon_however_much_is_due(self, relaying, service, ledger):
        ledger.do("INSERT INTO rota_runs (job, queue) SELECT 'work', 'default' FROM generate_series(1, 3000)")

        sent = [sending.send_due(relaying, service.registry.jobs, service.carrier, seconds=0) for _ in range(7)]

        assert sent == [sending.BATCH] * 6 + [0]

    def test_two_dispatchers_at_once_send_each_run_once(self, service, ledger, database):
        ledger.do("INSERT INTO rota_runs (job, queue) SELECT 'work', 'default' FROM generate_series(1, 2000)")

        def dispatch():
            with databases.autocommit(database) as connection:
                return sending.send_due(connection, service.registry.jobs, service.carrier, seconds=LONGEST)

        race(*[dispatch] * 4)
        while dispatch():
            pass

        assert service.waiting() == 2000
        assert unsent(ledger) == []

    def test_a_run_that_another_transaction_has_locked_does_not_hold_up_the_others(self, send_due, ledger, database):
        locked, free = ledger.request(), ledger.request()
        with database.begin() as connection:
            connection.exec_driver_sql(f"SELECT 1 FROM rota_runs WHERE id = {locked} FOR UPDATE")

            assert send_due() == 1

        assert unsent(ledger) == [locked]
        assert ledger.run(free).sent_at is not None


class TestFindLost:
    """Messages that have left their queue although no process has claimed their runs."""

    def test_on_an_empty_queue_everything_sent_a_while_ago_is_lost(self, find_lost, send_due, ledger, service, caplog):
        caplog.set_level("INFO", "rota")
        run_ids = [ledger.request() for _ in range(3)]
        send_due()
        service.redis.flushall()
        for run_id in run_ids:
            sent_ago(ledger, run_id, 6)

        assert find_lost() == 3
        assert emitted(caplog, "dispatcher.sent_again") == [DispatcherSentAgain(3)]
        assert send_due() == 3
        assert service.waiting() == 3

    def test_what_was_sent_just_now_is_not_lost(self, find_lost, send_due, ledger, service):
        ledger.request()
        send_due()
        service.redis.flushall()

        assert find_lost() == 0

    def test_in_a_backlog_only_what_left_the_queue_is_lost(self, find_lost, send_due, ledger, service):
        run_ids = [ledger.request() for _ in range(5)]
        for age, run_id in zip((90, 80, 70, 60, 50), run_ids, strict=True):
            send_due()
            sent_ago(ledger, run_id, age)
        for _ in range(2):  # fetched by a worker that has not been heard of since
            service.redis.lpop("dramatiq:default")

        assert find_lost() == 2
        assert unsent(ledger) == run_ids[:2]

    def test_a_backlog_that_nobody_fetched_from_is_not_sent_again(self, find_lost, send_due, ledger, service):
        run_ids = [ledger.request() for _ in range(50)]
        send_due()
        for run_id in run_ids:
            sent_ago(ledger, run_id, 3600)

        assert find_lost() == 0

    @pytest.mark.parametrize("end", ["dropped", "orphaned", "pruned"])
    def test_a_backlog_behind_a_run_that_is_over_by_other_means_is_not_sent_again(
        self, find_lost, relaying, send_due, ledger, service, end
    ):
        head, *backlog = [ledger.request() for _ in range(50)]
        send_due()
        ledger.do("UPDATE rota_runs SET queued_at = queued_at - interval '2 hours'")
        for run_id in backlog:
            sent_ago(ledger, run_id, 3600)
        lost = ledger.request(queued_at="2020-01-01T00:00:00Z", sent_at="2020-01-01T00:00:00Z")

        if end == "dropped":
            operations.drop(relaying, [head])
        elif end == "orphaned":
            ledger.do("UPDATE rota_runs SET job = 'gone' WHERE id = :id", id=head)
            ledger.do("DELETE FROM rota_processes")  # so that no process is known
            orphans.end(relaying, "gone", "unknown")
        else:
            ledger.do("DELETE FROM rota_runs WHERE id = :id", id=head)

        assert service.carrier.oldest_runs("default") == (True, [head, *backlog])
        assert find_lost() == 1
        assert unsent(ledger) == ([lost] if end == "pruned" else [head, lost])

    def test_a_message_of_the_fast_lane_at_the_head_does_not_hide_the_oldest_run(
        self, find_lost, send_due, ledger, service
    ):
        service.broker.get_actor("fast").send()
        lost, waiting = ledger.request(), ledger.request()
        send_due()
        service.redis.delete("dramatiq:default")
        service.broker.get_actor("fast").send()
        ledger.do("UPDATE rota_runs SET sent_at = NULL WHERE id = :id", id=waiting)
        send_due()
        sent_ago(ledger, lost, 60)
        sent_ago(ledger, waiting, 50)

        assert find_lost() == 1
        assert unsent(ledger) == [lost]

    def test_rubbish_at_the_head_does_not_hide_the_oldest_run(self, find_lost, send_due, ledger, service):
        service.put(b"\xff\xfe", "rubbish")
        run_id = ledger.request()
        send_due()
        sent_ago(ledger, run_id, 60)

        assert service.carrier.oldest_runs("default") == (True, [run_id])
        assert find_lost() == 0

    @pytest.mark.parametrize("forged", [10**30, 2**63, -1, 0, True, 1.5, "7", None, [1]], ids=repr)
    def test_a_message_with_an_impossible_run_id_stops_nothing(self, find_lost, send_due, ledger, service, forged):
        """The queue is busy or not served, so the message stays at its head."""
        put_message_for(service, forged)
        lost, waiting = ledger.request(), ledger.request()
        ledger.do("UPDATE rota_runs SET sent_at = clock_timestamp() WHERE id = :id", id=lost)
        send_due()
        sent_ago(ledger, lost, 60)
        sent_ago(ledger, waiting, 50)

        assert service.carrier.oldest_runs("default") == (True, [waiting])
        assert find_lost() == 1
        assert unsent(ledger) == [lost]

    def test_messages_of_another_ledger_at_the_head_do_not_hide_the_oldest_run(
        self, find_lost, send_due, ledger, service
    ):
        put_message_for(service, 2**62)
        elsewhere = ledger.request("elsewhere", queue="elsewhere", sent_at="2020-01-01T00:00:00Z")
        put_message_for(service, elsewhere)
        lost, waiting = ledger.request(), ledger.request()
        ledger.do("UPDATE rota_runs SET sent_at = clock_timestamp() WHERE id = :id", id=lost)
        send_due()
        sent_ago(ledger, lost, 60)
        sent_ago(ledger, waiting, 50)
        ledger.do("UPDATE rota_runs SET sent_at = clock_timestamp() WHERE id = :id", id=elsewhere)

        assert find_lost() == 1
        assert unsent(ledger) == [lost]

    def test_what_is_lost_at_once_is_sent_again_batch_by_batch(self, relaying, service, ledger, monkeypatch):
        monkeypatch.setattr(due, "BATCH", 10)
        for queue in ("default", "elsewhere"):
            ledger.do(
                "INSERT INTO rota_runs (job, queue, sent_at) SELECT 'work', :queue, now() - interval '1 minute'"
                " FROM generate_series(1, 25)",
                queue=queue,
            )

        found = [sending.find_lost(relaying, service.carrier, 5, seconds=0) for _ in range(4)]

        assert found == [20, 20, 10, 0]

    def test_behind_many_messages_of_the_fast_lane_nothing_is_taken_for_lost(self, find_lost, ledger, service):
        run_id = ledger.request()
        sent_ago(ledger, run_id, 60)
        for _ in range(120):
            service.broker.get_actor("fast").send()

        assert find_lost() == 0

    def test_each_queue_is_judged_by_itself(self, find_lost, send_due, ledger, service):
        here, there = ledger.request(), ledger.request("elsewhere", queue="elsewhere")
        send_due()
        for run_id in (here, there):
            sent_ago(ledger, run_id, 60)
        service.redis.delete("dramatiq:elsewhere")

        assert find_lost() == 1
        assert unsent(ledger) == [there]

    def test_while_redis_is_away_nothing_is_taken_for_lost(self, relaying, ledger):
        class Away:
            carries = True

            def oldest_runs(self, queue):
                raise redis.ConnectionError("away on purpose")

        run_id = ledger.request()
        sent_ago(ledger, run_id, 60)

        assert sending.find_lost(relaying, Away(), 5) == 0

    def test_what_is_at_work_is_not_lost(self, find_lost, send_due, ledger, service, process, database):
        run_id = ledger.request()
        send_due()
        process.lease(database, run_id)
        sent_ago(ledger, run_id, 60)
        service.redis.flushall()

        assert find_lost() == 0


def test_a_run_committed_while_redis_was_away_is_sent_by_the_dispatcher_later(
    find_lost, send_due, service, ledger, database, monkeypatch
):
    def away(_):
        raise redis.ConnectionError("away on purpose")

    with monkeypatch.context() as patch, Session(database) as session, session.begin():
        patch.setattr(service.broker.redis_queues, "enqueue_many", away)
        run_id = enqueue(session, "work")
        session.commit()
    assert service.waiting() == 0
    sent_ago(ledger, run_id, 6)
    find_lost()
    send_due()

    assert service.carrier.oldest_runs("default") == (True, [run_id])


def test_a_message_delivered_twice_is_worked_on_once(serve, ledger, send_due):
    """I2."""
    done = []

    @job("work", overlap="allow")
    def once(run):
        done.append(run.id)

    service = serve(once)
    run_ids = [ledger.request(exclusive=False) for _ in range(20)]
    with databases.autocommit(ledger.engine) as connection:
        for _ in range(3):
            ledger.do("UPDATE rota_runs SET sent_at = NULL")
            sending.send_due(connection, service.registry.jobs, service.carrier)
    worker = service.work(threads=4)
    service.broker.join("default", timeout=20_000)
    worker.join()

    assert sorted(done) == run_ids
    assert {row.attempt for row in ledger.runs("work")} == {1}
