"""The messages that a process believes it has fetched, and those that Redis has assigned to it, agree again after any
failure.
"""

from collections import Counter
from contextlib import ExitStack
from threading import Event
from types import SimpleNamespace

import pytest
import redis
from dramatiq.message import Message

from core import job
from core.ledger.carrier import OutgoingRun
from core.observability.events import WorkerNotDrained
from core.transport import work_queue as work_queues
from core.transport.redis import Queues, connect, consumer
from core.transport.redis.acks import Acks
from core.transport.redis.consumer import Shared
from core.transport.redis.error_log import ErrorLog
from core.transport.redis.intake import Intake
from core.transport.redis.unknown_actors import UnknownActors
from core.transport.redis.wakeups import Wakeups
from core.transport.redis.window_consumer import WindowConsumer
from core.transport.work_queue import WorkQueue
from tests.support.emitted import emitted
from tests.support.eventually import eventually


def failing_once(method, queue_name="default"):
    """Return ``method``, whose first call for that queue raises the error of a Redis that is away."""
    failures = Counter()

    def called(queue, *args):
        if queue == queue_name and not failures[queue]:
            failures[queue] += 1
            raise redis.ConnectionError("away for a moment")
        return method(queue, *args)

    return called


def test_a_queue_is_served_after_a_corrupt_message_could_not_be_set_aside(serve, hear, heard, monkeypatch):
    service = serve(hear)
    service.put(b"not a message", "corrupt")
    queues = service.broker.redis_queues
    monkeypatch.setattr(queues, "dead_letter", failing_once(queues.dead_letter))
    worker = service.work(threads=1)

    eventually(lambda: service.dead_letters() == [b"not a message"], within=10)
    service.broker.get_actor("hear").send(word=1)

    eventually(lambda: heard == {1: 1}, within=10)
    eventually(lambda: service.fetched() == 0, within=10)
    eventually(worker.work_queue.empty, within=10)


def test_what_came_with_a_corrupt_message_that_could_not_be_set_aside_is_not_lost(serve, hear, heard, monkeypatch):
    service = serve(hear)
    for word in range(4):
        service.broker.get_actor("hear").send(word=word)
    service.put(b"not a message", "corrupt")
    queues = service.broker.redis_queues
    monkeypatch.setattr(queues, "dead_letter", failing_once(queues.dead_letter))
    service.work(threads=8)

    eventually(lambda: heard == dict.fromkeys(range(4), 1), within=10)
    eventually(lambda: service.fetched() == 0, within=10)


def test_a_message_whose_time_is_null_is_counted_like_any_other(serve, hear, heard):
    service = serve(hear)
    worker = service.work(threads=1)
    actor = service.broker.get_actor("hear")

    service.broker.redis_queues.enqueue_many([actor.message_with_options(kwargs={"word": 1}, eta=None)])

    eventually(lambda: heard == {1: 1}, within=10)
    eventually(worker.work_queue.empty, within=10)


def test_a_fetch_that_reaches_redis_after_it_was_given_up_leaves_nothing_behind(serve, hear, heard, monkeypatch):
    monkeypatch.setattr(consumer, "LOOK_FOR_STRAYS_SECONDS", 0.2)
    service = serve(hear)
    service.work(threads=1)
    queues = service.broker.redis_queues
    monkeypatch.setattr(queues, "fetch", failing_once(queues.fetch))
    service.broker.get_actor("hear").send(word=1)
    eventually(lambda: heard == {1: 1}, within=10)  # so the uncertain messages are settled

    service.redis.hset("dramatiq:default.msgs", "stray", service.broker.get_actor("hear").message(word=2).copy(
        options={"redis_message_id": "stray"}
    ).encode())  # fmt: skip
    service.redis.sadd(f"dramatiq:__acks__.{service.broker.broker_id}.default", "stray")

    eventually(lambda: heard == {1: 1, 2: 1}, within=10)


@pytest.fixture
def queues(redis_url):
    queues = Queues(connect(redis_url))
    yield queues
    queues.client.close()


@pytest.fixture
def consume(queues):
    """Yield a function that makes the consumers of a worker with ``work_queue``, without the worker."""
    with ExitStack() as stack:

        def consume(work_queue, *names):
            unknown_actors, error_log = UnknownActors(queues), ErrorLog(queues.client)
            intake, wakeups = Intake(unknown_actors), Wakeups(queues, error_log)
            stack.callback(wakeups.stop)
            intake.open(work_queue)
            actors = dict.fromkeys(names)
            shared = Shared(queues, intake, Acks(queues, error_log), wakeups, unknown_actors, error_log, actors)
            return [WindowConsumer(shared, name, prefetch=16, timeout=100, work_queue=work_queue) for name in names]

        yield consume


@pytest.fixture
def enqueue(queues):
    """Return a function that puts messages for the actor of that name on a queue."""

    def enqueue(name, count=1, **options):
        queues.enqueue_many(Message(name, name, (), {}, options) for _ in range(count))

    return enqueue


class TestRequeueing:
    """A process whose threads make no progress requeues waiting messages for other processes."""

    @pytest.fixture
    def work_queue(self):
        return WorkQueue(8)

    @pytest.fixture
    def consumers(self, consume, work_queue, enqueue):
        made = consume(work_queue, "one", "other")
        for each in made:
            enqueue(each.queue_name)
            each.fetch()
            each.hand_over()
        assert work_queue.qsize() == 2
        return made

    @pytest.fixture
    def waiting(self, queues):
        return lambda name: queues.client.llen(queues.key(name))

    def test_one_queue_that_cannot_be_requeued_keeps_no_other(
        self, queues, work_queue, consumers, waiting, monkeypatch
    ):
        monkeypatch.setattr(queues, "requeue", failing_once(queues.requeue, "one"))

        consumers[0].requeue_waiting()

        assert (waiting("one"), waiting("other")) == (0, 1)
        consumers[0].fetch()
        assert (waiting("one"), len(queues.fetched("one"))) == (0, 1)
        assert work_queue.qsize() == 1

    def test_what_the_threads_have_not_got_yet_is_requeued_as_well(self, work_queue, consumers, enqueue, waiting):
        enqueue("one", 3)
        consumers[0].fetch()
        assert (waiting("one"), work_queue.qsize()) == (0, 5)

        consumers[0].requeue_waiting()

        assert waiting("one") == 4
        assert work_queue.empty()

    @pytest.mark.parametrize("last_act", [next, WindowConsumer.close], ids=["a step", "its end"])
    def test_a_consumer_requeues_all_that_waits_once_its_worker_stops(self, work_queue, consumers, waiting, last_act):
        consumers[0].shared.intake.drain()

        last_act(consumers[0])

        assert (waiting("one"), waiting("other")) == (1, 1)
        assert work_queue.empty()

    def test_what_a_stopping_worker_cannot_requeue_is_said(self, queues, consumers, monkeypatch, caplog):
        monkeypatch.setattr(queues, "requeue", failing_once(queues.requeue, "one"))
        consumers[0].shared.intake.drain()

        consumers[0].requeue_waiting()

        assert emitted(caplog, "worker.not_drained") == [WorkerNotDrained("one", 1, "away for a moment")]


def test_threads_that_run_dry_wake_the_consumer_that_has_more_for_them(consume, enqueue, monkeypatch):
    monkeypatch.setattr(work_queues, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    work_queue = WorkQueue(1)
    (window,) = consume(work_queue, "default")
    enqueue("default", 1, run_id=1)
    window.step()
    work_queue.get().message.worked(0.0005)  # so that twenty messages are handed over at once
    work_queue.task_done()
    enqueue("default", 100, run_id=1)
    window.may_find = True
    window.step()
    lane = work_queue.lane("default")
    assert (lane.waiting, len(window.message_cache)) == (100, 80)

    window.rest()

    assert lane.wake_at == 90  # when ten of the twenty are left


def test_a_process_that_may_claim_nothing_leaves_runs_to_others_and_serves_the_fast_lane(serve, ledger, heard):
    @job("hear", queue="fast", ledger=False)
    def hear(run, word: int):
        heard[word] += 1

    is_registered = Event()
    service = serve(job("work", overlap="allow")(lambda run: None), hear, may_claim=is_registered.is_set)
    service.work(threads=2)
    run_ids = [ledger.request(exclusive=False) for _ in range(3)]
    service.carrier.send([OutgoingRun(run_id, "work", "default") for run_id in run_ids])
    service.broker.get_actor("hear").send(word=1)

    eventually(lambda: heard == {1: 1}, within=10)
    assert service.waiting() == 3
    assert ledger.states("work") == ["queued"] * 3

    is_registered.set()
    service.broker.wakeups.wake_all()
    eventually(lambda: ledger.states("work") == ["succeeded"] * 3, within=10)
