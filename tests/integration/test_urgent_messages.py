"""Messages of runs with a priority wait in a sorted set beside the list of their queue, and are fetched first."""

import time

import pytest

from core import database as databases
from core import job
from core.dispatcher import sending
from core.ledger.carrier import OutgoingRun
from core.ledger.releases import Fleet
from core.transport.messages import read, run_id
from core.transport.redis import Queues, connect
from core.transport.redis.queues import OLDEST_FIRST_EVERY
from core.transport.redis.unknown_actors import PAUSE_SECONDS
from tests.support.eventually import eventually


@job("work", overlap="allow")
def work(run):
    pass


@pytest.fixture
def service(serve):
    return serve(work)


@pytest.fixture
def queues(service):
    return service.broker.redis_queues


@pytest.fixture
def autocommit(database):
    with databases.autocommit(database) as connection:
        yield connection


@pytest.fixture
def send(service):
    """Send runs, which are given as ids with priorities."""
    return lambda priorities: service.carrier.send(
        [OutgoingRun(number, "work", "default", priority) for number, priority in priorities.items()]
    )


@pytest.fixture
def fetch(queues):
    """Fetch messages. Return their runs."""
    return lambda most, least_priority=0: [
        run_id(body, "default") for body in queues.fetch("default", most, least_priority)
    ]


def urgent_waiting(queues, queue="default"):
    return queues.client.zcard(queues.urgent_key(queue))


def redis_ids(queues, bodies):
    return [read(body, "default").options["redis_message_id"] for body in bodies]


class TestOrder:
    """By priority, and then in the order in which they were sent."""

    def test_urgent_messages_come_first(self, send, fetch):
        send({1: 0, 2: 3, 3: 9})
        send({4: 3, 5: 9, 6: 0})

        assert fetch(4) == [3, 5, 2, 4]
        assert fetch(4) == [1, 6]
        assert fetch(4) == []

    def test_one_fetch_takes_from_both(self, send, fetch):
        send({1: 0, 2: 0, 3: 0, 4: 7})

        assert fetch(3) == [4, 1, 2]
        assert fetch(3) == [3]

    def test_a_fetch_for_the_last_reserved_thread_takes_only_messages_of_at_least_its_priority(self, send, fetch):
        send({1: 0, 2: 4, 3: 5, 4: 9, 5: 5})

        assert fetch(2, least_priority=5) == [4, 3]
        assert [fetch(2, least_priority=5) for _ in range(OLDEST_FIRST_EVERY)] == [
            [5],
            *[[]] * (OLDEST_FIRST_EVERY - 1),
        ]
        assert fetch(3) == [2, 1]

    def test_a_large_batch_keeps_its_order(self, send, fetch):
        send(dict.fromkeys(range(1, 901), 5))

        assert fetch(1000) == list(range(1, 901))

    def test_one_fetch_in_ten_begins_with_the_oldest(self, send, fetch):
        send(dict.fromkeys(range(1, 101), 0))
        send(dict.fromkeys(range(101, 201), 9))

        found = [fetch(1)[0] for _ in range(3 * OLDEST_FIRST_EVERY)]

        assert [each for each in found if each < 101] == [1, 2, 3]
        assert [each for each in found if each > 100] == list(range(101, 128))

    def test_a_fetch_that_begins_with_the_oldest_also_takes_urgent_messages(self, send, fetch):
        for _ in range(OLDEST_FIRST_EVERY - 1):
            fetch(1)
        send({1: 0, 2: 9, 3: 9})

        assert fetch(2) == [1, 2]

    @pytest.mark.parametrize("priority", [0, -1, 10, True, 1.5, "7", None, [1]], ids=repr)
    def test_a_message_with_an_impossible_priority_waits_in_the_list(self, service, queues, fetch, priority):
        message = service.broker.get_actor("work").message().copy(options={"run_id": 1, "priority": priority})
        queues.enqueue_many([message])
        service.broker.enqueue(message)

        assert service.waiting() == 2
        assert fetch(2) == [1, 1]


class TestPutBack:
    """A requeued message keeps its priority."""

    def test_a_requeued_message_waits_behind_those_of_its_priority(self, send, fetch, queues):
        send({1: 0, 2: 3, 3: 9, 4: 0})
        fetched = queues.fetch("default", 3)
        send({5: 3, 6: 9})

        queues.requeue("default", redis_ids(queues, fetched))

        assert fetch(10) == [6, 3, 5, 2, 4, 1]

    def test_a_message_that_was_acknowledged_is_not_put_back(self, send, fetch, queues):
        send({1: 7})
        ids = redis_ids(queues, queues.fetch("default", 1))
        queues.acknowledge("default", ids)

        queues.requeue("default", ids)

        assert fetch(1) == []
        assert queues.client.hlen(queues.key("default.msgs")) == 0

    @pytest.mark.parametrize("is_dead", [True, False])
    def test_the_messages_of_a_dead_process_are_put_back(self, service, send, fetch, redis_url, is_dead):
        send({1: 0, 2: 3, 3: 9})
        gone = Queues(connect(redis_url))
        gone.fetch("default", 3)

        if is_dead:
            service.broker.redis_queues.recover(gone.broker_id)
        else:
            service.broker.redis_queues.maintain()

        assert fetch(3) == ([3, 2, 1] if is_dead else [])
        gone.client.close()

    def test_a_dead_process_leaves_no_message_without_body(self, service, send, queues, redis_url):
        send({1: 9})
        gone = Queues(connect(redis_url))
        gone.fetch("default", 1)
        service.redis.delete("dramatiq:default.msgs")

        queues.recover(gone.broker_id)

        assert urgent_waiting(queues) == 0
        assert service.redis.keys("dramatiq:__acks__*") == []
        gone.client.close()

    def test_a_worker_that_stops_puts_back_those_whose_job_it_does_not_have(self, serve):
        service = serve(work, ask_fleet=lambda: Fleet(is_complete=False))
        queues = service.broker.redis_queues
        service.carrier.send([OutgoingRun(1, "unknown", "default", 9)])
        worker = service.work()
        eventually(lambda: service.fetched() == 1)

        worker.stop()

        assert eventually(lambda: urgent_waiting(queues) == 1, within=PAUSE_SECONDS * 20)


class TestEnds:
    """An urgent message ends in the same ways as any other message."""

    def test_a_message_without_body_is_dead_lettered(self, service, queues):
        queues.client.zadd(queues.urgent_key("default"), {"9:lost": 0, "9:corrupt": 1})
        queues.client.hset("dramatiq:default.msgs", "9:corrupt", b"{")
        service.work()

        assert eventually(lambda: service.dead_letters() == [b"{"])
        assert eventually(lambda: service.fetched() == 0)
        assert urgent_waiting(queues) == 0

    def test_a_message_can_be_dead_lettered(self, service, queues, send):
        send({1: 9})

        queues.dead_letter("default", redis_ids(queues, queues.fetch("default", 1)))

        assert [run_id(body, "default") for body in service.dead_letters()] == [1]
        assert service.fetched() == queues.client.hlen("dramatiq:default.msgs") == 0

    def test_flush_drops_them(self, service, queues, send, fetch):
        send({1: 9, 2: 0})

        service.broker.flush("default")

        assert fetch(2) == []
        assert urgent_waiting(queues) == 0

    def test_an_abandoned_queue_is_cleared_of_them(self, service, queues, send):
        send({1: 9, 2: 0})

        outcome = service.carrier.clear_abandoned("default", Fleet())

        assert outcome == {("work", "dropped"): 2}
        assert urgent_waiting(queues) == service.waiting() == queues.client.hlen("dramatiq:default.msgs") == 0


class TestWakeups:
    """A queue that has only urgent messages has messages."""

    def test_a_search_finds_the_queue(self, queues, send):
        assert queues.look(["other", "default"]) == []
        send({1: 4})

        assert queues.look(["other", "default"]) == ["default"]

    def test_an_idle_worker_takes_them_at_once(self, service, ledger):
        service.work()
        run = ledger.request(priority=9)
        sent_at = time.monotonic()
        service.carrier.send([OutgoingRun(run, "work", "default", 9)])

        eventually(lambda: ledger.run(run).state == "succeeded")
        assert time.monotonic() - sent_at < 5


class TestLost:
    """A run is lost if a later run of the same priority has left the queue before it."""

    @pytest.fixture
    def sent(self, ledger, send):
        """Request and send runs, each some time ago and with a priority. Return their ids."""

        def sent(*each):
            ids = [ledger.request(priority=priority) for _, priority in each]
            for (ago, priority), run in zip(each, ids, strict=True):
                ledger.do(
                    "UPDATE rota_runs SET sent_at = clock_timestamp() - make_interval(secs => :ago) WHERE id = :id",
                    ago=ago,
                    id=run,
                )
                send({run: priority})
            return ids

        return sent

    @pytest.fixture
    def find_lost(self, autocommit, service, ledger):
        def find_lost():
            sending.find_lost(autocommit, service.carrier, 5)
            return [row.id for row in ledger.rows("SELECT id FROM rota_runs WHERE sent_at IS NULL ORDER BY id")]

        return find_lost

    def test_nothing_is_lost_that_waits(self, sent, find_lost):
        sent((90, 0), (80, 0), (70, 9), (60, 3), (50, 9))

        assert find_lost() == []

    def test_an_ordinary_message_waits_while_urgent_ones_leave_the_queue(self, sent, find_lost, fetch):
        _, urgent, _ = sent((90, 0), (80, 9), (70, 0))
        assert fetch(1) == [urgent]
        sent((60, 9))

        assert find_lost() == [urgent]

    def test_an_urgent_run_is_found_lost_behind_an_older_backlog(self, sent, find_lost, fetch):
        ids = sent((90, 0), (80, 0), (70, 9))
        assert fetch(1) == ids[2:]

        assert find_lost() == ids[2:]

    def test_each_priority_is_judged_by_itself(self, sent, find_lost, fetch):
        """Messages of a low priority may wait for long, and must not hide a lost run of a higher priority."""
        ids = sent((90, 1), (80, 9), (70, 9))
        assert fetch(1) == ids[1:2]

        assert find_lost() == ids[1:2]

    def test_with_redis_emptied_all_are_lost(self, sent, find_lost, service):
        ids = sent((90, 0), (80, 1), (70, 9))
        service.redis.flushall()

        assert find_lost() == ids

    def test_a_parked_run_is_not_lost(self, sent, find_lost, ledger):
        ledger.request(priority=9, sent_at="infinity")

        assert find_lost() == []

    @pytest.mark.parametrize("others", [[], [None], [None, 8]])
    def test_urgent_messages_join_the_list_if_only_workers_of_the_release_before_serve_the_queue(
        self, sent, find_lost, service, queues, start_process, others
    ):
        for threads in others:
            start_process(queues=["default"], threads=threads)
        start_process(queues=["other"], threads=8)
        sent((90, 0), (80, 9), (70, 3))
        is_served_by_former = others == [None]

        assert [find_lost() for _ in range(3)] == [[]] * 3

        assert service.waiting() == (3 if is_served_by_former else 1)
        assert urgent_waiting(queues) == (0 if is_served_by_former else 2)
