"""I4: whatever Redis does, the worker continues, no run is lost, and each problem is logged once."""

import threading
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta

import pytest

from core import job
from core.observability.events import MessageRequeued, RedisRecovered
from core.transport.redis import error_log
from tests.support.emitted import emitted
from tests.support.eventually import elapse, eventually
from tests.support.proxy import proxy

MESSAGES = 400


def said(caplog, event):
    return [record for record in caplog.records if record.getMessage().startswith(event)]


def through(client, **settings):
    """Return the settings of a process whose Redis is reached through the proxy."""
    for name, value in settings.items():
        client.config_set(name, value)


def test_connections_that_are_dropped_again_and_again_lose_nothing(redis_url, serve_on, serve, hear, heard, caplog):
    sender = serve(hear).broker.get_actor("hear")
    with proxy(redis_url) as (connections, url):
        service = serve_on(url, hear)
        service.work(threads=4, poll_ms=200)
        for burst in range(8):
            for word in range(burst * 50, burst * 50 + 50):
                sender.send(word=word)
            elapse(0.15)
            connections.drop()
        eventually(lambda: len(heard) == MESSAGES, within=30)
        eventually(lambda: service.waiting() == 0 and service.fetched() == 0, within=30)

        assert service.redis.hlen("dramatiq:default.msgs") == 0
        assert len(said(caplog, "redis.trouble")) <= 2


def test_one_that_answers_slowly_loses_nothing(serve, hear, heard, caplog):
    service = serve(hear)
    service.work(threads=2, poll_ms=100)
    for word in range(20):
        if word % 5 == 0:
            service.redis.client_pause(700)
        service.broker.get_actor("hear").send(word=word)

    eventually(lambda: len(heard) == 20, within=30)
    eventually(lambda: service.fetched() == 0, within=10)
    assert set(heard.values()) == {1}
    assert len(said(caplog, "redis.trouble")) <= 1


def test_one_connection_waits_for_all_queues(serve):
    def on_queue(number):
        return job(f"hear-{number}", queue=f"queue-{number}", ledger=False)(lambda run: None)

    service = serve(*map(on_queue, range(20)))
    service.work(threads=2, poll_ms=100)

    def blocked():
        return [client["name"] for client in service.redis.client_list() if client["cmd"].startswith("blpop")]

    eventually(lambda: len(blocked()) == 1, within=10)
    elapse(1.5)  # by this time it waits for all consumers
    assert len(blocked()) == 1
    service.broker.get_actor("hear-19").send()
    eventually(lambda: service.fetched("queue-19") == 0 and service.waiting("queue-19") == 0, within=10)


def test_a_full_redis_is_said_once_and_drained_when_there_is_room_again(serve, hear, heard, caplog, monkeypatch):
    monkeypatch.setattr(error_log, "QUIET_SECONDS", 1.0)
    service = serve(hear)
    for word in range(50):
        service.broker.get_actor("hear").send(word=word)
    try:
        through(service.redis, **{"maxmemory-policy": "noeviction", "maxmemory": 1})
        service.work(threads=2, poll_ms=100)
        eventually(lambda: said(caplog, "redis.trouble"), within=10)
        elapse(2)
        assert len(said(caplog, "redis.trouble")) == 1
        assert "maxmemory" in said(caplog, "redis.trouble")[0].getMessage()
        assert heard == Counter()
    finally:
        through(service.redis, maxmemory=0)

    eventually(lambda: len(heard) == 50, within=10)
    eventually(lambda: service.redis.hlen("dramatiq:default.msgs") == 0, within=10)
    assert set(heard.values()) == {1}
    (told,) = eventually(lambda: emitted(caplog, "redis.recovered"), within=10)
    assert isinstance(told, RedisRecovered)
    assert told.failures >= 1


def test_what_is_done_is_acknowledged_even_while_redis_is_full(serve, heard):
    go_on = threading.Event()

    @job("hear", ledger=False)
    def hear(run, word: int):
        assert go_on.wait(20)
        heard[word] += 1

    service = serve(hear)
    service.work(threads=2, poll_ms=100)
    service.broker.get_actor("hear").send(word=1)
    eventually(lambda: service.fetched() == 1, within=10)
    try:
        through(service.redis, **{"maxmemory-policy": "noeviction", "maxmemory": 1})
        go_on.set()

        eventually(lambda: service.fetched() == 0, within=10)
    finally:
        through(service.redis, maxmemory=0)


class TestRetry:
    """A message that fails while Redis is full is still retried."""

    @pytest.fixture
    def go_on(self):
        return threading.Event()

    @pytest.fixture
    def stumble(self, heard, go_on):
        @job("stumble", ledger=False, max_retries=1, retry_delay=timedelta(milliseconds=1))
        def stumble(run):
            assert go_on.wait(20)
            heard["tried"] += 1
            if heard["tried"] == 1:
                raise ValueError("not yet")

        return stumble

    @pytest.fixture
    def fail_while_full(self, go_on, caplog):
        """Let the message fail while Redis has no room for its retry, and then make room."""

        @contextmanager
        def fail_while_full(service):
            service.broker.get_actor("stumble").send()
            eventually(lambda: service.fetched() == 1, within=10)
            try:
                through(service.redis, **{"maxmemory-policy": "noeviction", "maxmemory": 1})
                go_on.set()
                eventually(lambda: said(caplog, "message.retry_waits"), within=10)
                yield
            finally:
                through(service.redis, maxmemory=0)

        return fail_while_full

    def test_it_waits_until_there_is_room(self, serve, stumble, heard, fail_while_full):
        service = serve(stumble)
        service.work(threads=2, poll_ms=100)
        with fail_while_full(service):
            assert heard == {"tried": 1}

        eventually(lambda: heard == {"tried": 2}, within=10)
        eventually(lambda: service.fetched() == 0, within=10)

    def test_one_that_waits_at_the_end_of_its_process_is_another_ones(
        self, redis_url, serve_on, stumble, heard, fail_while_full
    ):
        service = serve_on(redis_url, stumble)
        worker = service.work(threads=2, poll_ms=100)
        with fail_while_full(service):
            worker.stop(timeout=5000)
        service.broker.acks.stop()
        assert service.fetched() == 1

        successor = serve_on(redis_url, stumble)
        successor.work(threads=2, poll_ms=100)
        successor.broker.redis_queues.recover(service.broker.broker_id)

        eventually(lambda: heard == {"tried": 2}, within=10)


def test_a_replica_is_said_once_and_left_when_it_is_master_again(serve, hear, heard, caplog):
    service = serve(hear)
    service.broker.get_actor("hear").send(word=1)
    try:
        service.redis.replicaof("127.0.0.1", 1)
        service.work(threads=2, poll_ms=100)
        eventually(lambda: said(caplog, "redis.trouble"), within=10)
        elapse(1)
        assert len(said(caplog, "redis.trouble")) == 1
    finally:
        service.redis.replicaof("NO", "ONE")

    eventually(lambda: heard == {1: 1}, within=10)


def test_scripts_that_were_flushed_are_loaded_again(serve, hear, heard, caplog):
    service = serve(hear)
    service.work(threads=2, poll_ms=100)
    for word in range(20):
        service.redis.script_flush()
        service.broker.get_actor("hear").send(word=word)

    eventually(lambda: len(heard) == 20, within=10)
    service.redis.script_flush()
    eventually(lambda: service.fetched() == 0, within=10)
    assert len(said(caplog, "redis.trouble")) <= 1  # flushed between the loading of the script and its call


def test_messages_that_were_lost_on_the_way_from_redis_are_put_back(serve, hear, heard, caplog):
    caplog.set_level("INFO", "rota")
    service = serve(hear)
    service.broker.get_actor("hear").send(word=1)
    assert len(service.broker.redis_queues.fetch("default", 1)) == 1  # and no process holds the message
    assert service.fetched() == 1
    service.work(threads=2, poll_ms=100)

    eventually(lambda: heard == {1: 1}, within=10)
    assert emitted(caplog, "message.requeued") == [MessageRequeued("default", 1)]


class TestFairness:
    """Messages that one process cannot begin soon are worked on by other processes."""

    def test_short_messages_behind_long_ones_go_to_the_process_that_is_free(self, redis_url, serve_on):
        go_on, begun, heard = threading.Event(), Counter(), Counter()

        @job("long", ledger=False)
        def long(run):
            begun[threading.get_ident()] += 1
            assert go_on.wait(30)

        @job("short", ledger=False)
        def short(run, word: int):
            heard[word] += 1

        busy, free = (serve_on(redis_url, long, short) for _ in range(2))
        try:
            busy.work(threads=2, poll_ms=1000)
            for word in range(1000):  # so that the process has seen short jobs, and fetches many messages
                busy.broker.get_actor("short").send(word=word)
            eventually(lambda: len(heard) == 1000, within=30)
            pipe = [busy.broker.get_actor("long").message() for _ in range(2)]
            pipe += [busy.broker.get_actor("short").message(word=word) for word in range(1000, 1300)]
            busy.broker.redis_queues.enqueue_many(pipe)
            eventually(lambda: begun.total() == 2, within=10)
            free.work(threads=2, poll_ms=1000)

            eventually(lambda: len(heard) == 1300, within=10)
            assert begun.total() == 2
        finally:
            go_on.set()

    def test_no_long_message_waits_in_a_process_while_another_has_a_free_thread(self, redis_url, serve_on):
        go_on, begun = threading.Event(), Counter()

        @job("long", ledger=False)
        def long(run):
            begun[threading.get_ident()] += 1
            assert go_on.wait(30)

        services = [serve_on(redis_url, long) for _ in range(2)]
        try:
            for service in services:
                service.work(threads=3, poll_ms=1000)
            for _ in range(6):
                services[0].broker.get_actor("long").send()

            eventually(lambda: begun.total() == 6, within=10)
            assert set(begun.values()) == {1}
        finally:
            go_on.set()
