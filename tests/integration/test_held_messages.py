"""What a process counts as its own and what Redis counts as such agree again, whatever fails in between."""

from collections import Counter
from threading import Event

import pytest
import redis

from core import job
from core.ledger.carrier import OutgoingRun
from core.transport.redis import WorkQueue, consumer
from tests.support.eventually import eventually


def failing_once(method, queue_name="default"):
    """``method``, but the first call for that queue finds Redis away."""
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
    monkeypatch.setattr(service.broker, "do_nack", failing_once(service.broker.do_nack))
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
    monkeypatch.setattr(service.broker, "do_nack", failing_once(service.broker.do_nack))
    service.work(threads=8)

    eventually(lambda: heard == dict.fromkeys(range(4), 1), within=10)
    eventually(lambda: service.fetched() == 0, within=10)


def test_a_message_whose_time_is_null_is_counted_like_any_other(serve, hear, heard):
    service = serve(hear)
    worker = service.work(threads=1)
    actor = service.broker.get_actor("hear")

    service.broker.enqueue_many([actor.message_with_options(kwargs={"word": 1}, eta=None)])

    eventually(lambda: heard == {1: 1}, within=10)
    eventually(worker.work_queue.empty, within=10)


def test_a_fetch_that_reaches_redis_after_it_was_given_up_leaves_nothing_behind(serve, hear, heard, monkeypatch):
    monkeypatch.setattr(consumer, "LOOK_FOR_STRAYS_SECONDS", 0.2)
    service = serve(hear)
    service.work(threads=1)
    monkeypatch.setattr(service.broker, "fetch", failing_once(service.broker.fetch))
    service.broker.get_actor("hear").send(word=1)
    eventually(lambda: heard == {1: 1}, within=10)  # so what was in doubt is settled

    service.redis.hset("dramatiq:default.msgs", "stray", service.broker.get_actor("hear").message(word=2).copy(
        options={"redis_message_id": "stray"}
    ).encode())  # fmt: skip
    service.redis.sadd(f"dramatiq:__acks__.{service.broker.broker_id}.default", "stray")

    eventually(lambda: heard == {1: 1, 2: 1}, within=10)


class TestLeaving:
    """A process none of whose threads moves leaves what waits to others."""

    @pytest.fixture
    def service(self, serve):
        @job("one", queue="one", ledger=False)
        def one(run):
            """A job of the first queue."""

        @job("other", queue="other", ledger=False)
        def other(run):
            """A job of the second."""

        made = serve(one, other)
        made.broker.work_queue = WorkQueue(2)
        return made

    @pytest.fixture
    def consumers(self, service):
        made = [service.broker.consume(name) for name in ("one", "other")]
        for each in made:
            service.broker.get_actor(each.queue_name).send()
            each.fetch()
            each.hand_over()
        assert service.broker.work_queue.qsize() == 2
        return made

    def test_one_queue_that_cannot_be_put_back_keeps_no_other(self, service, consumers, monkeypatch):
        monkeypatch.setattr(service.broker, "do_requeue", failing_once(service.broker.do_requeue, "one"))

        consumers[0].leave_to_others()

        assert (service.waiting("one"), service.waiting("other")) == (0, 1)
        consumers[0].fetch()
        assert (service.waiting("one"), service.fetched("one")) == (0, 1)
        assert service.broker.work_queue.qsize() == 1

    def test_what_the_threads_have_not_got_yet_goes_back_as_well(self, service, consumers):
        first = consumers[0]
        for _ in range(3):
            service.broker.get_actor("one").send()
        service.broker.work_queue.give_back(first._lane, -3)
        first.message_cache = service.broker.fetch("one", 3)

        first.leave_to_others()

        assert service.waiting("one") == 4
        assert service.broker.work_queue.empty()


def test_threads_that_run_dry_wake_the_consumer_that_has_more_for_them(serve, hear):
    service = serve(hear)
    service.broker.work_queue = WorkQueue(1)
    window = service.broker.consume("default")
    window.message_cache, window._hand_over_at = [None] * 10, 4
    window._lane.waiting, window._lane.wake_at = 20, 2

    window.rest()

    assert window._lane.wake_at == 14


def test_a_process_that_may_claim_nothing_leaves_runs_to_others_and_serves_the_fast_lane(serve, ledger, heard):
    @job("hear", queue="fast", ledger=False)
    def hear(run, word: int):
        heard[word] += 1

    service = serve(job("work", overlap="allow")(lambda run: None), hear)
    is_registered = Event()
    service.broker.may_claim = is_registered.is_set
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
