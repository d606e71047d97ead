"""I4: invalid messages are dead-lettered and the worker continues, idle consumers are woken, and no message is worked
on twice.
"""

import json
import statistics
import threading
import time
from contextlib import closing

import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.message import Message
from prometheus_client import REGISTRY
from sqlalchemy.orm import Session

from core import enqueue, job
from core.embedded import EmbeddedRedis
from core.observability.events import MessageNotAcknowledged, MessageRejected
from core.transport.redis import connect
from tests.support.emitted import emitted
from tests.support.eventually import eventually


class Heard:
    """The words that the fast-lane job ``hear`` was given, in order."""

    def __init__(self):
        self.words = []
        self.at = {}
        self.came = threading.Condition()

    def add(self, word):
        with self.came:
            self.words.append(word)
            self.at[word] = time.monotonic()
            self.came.notify_all()

    def wait_for(self, word, *, within=10):
        with self.came:
            assert self.came.wait_for(lambda: word in self.words, within), f"{word!r} was not heard: {self.words}"
        return self.at[word]


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def hear(heard):
    @job("hear", ledger=False, max_retries=0)
    def hear(run, word: str):
        heard.add(word)

    return hear


def rejected(reason, queue="default"):
    labels = {"queue": queue, "reason": reason}
    return REGISTRY.get_sample_value("rota_messages_rejected_total", labels) or 0


def body(**changes):
    """Return the body of a message for ``hear``. Fields in ``changed`` replace others, and the value ... leaves a field
    out.
    """
    fields = {
        "queue_name": "default",
        "actor_name": "hear",
        "args": [],
        "kwargs": {"word": "hostile"},
        "options": {"redis_message_id": "hostile"},
        "message_id": "hostile",
        "message_timestamp": 1,
    }
    fields.update(changes)
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


HOSTILE_OPTIONS = [
    {"eta": "tomorrow"},
    {"eta": [1]},
    {"eta": None},
    {"eta": 1},
    {"eta": float("nan")},
    {"retries": "many"},
    {"retries": None},
    {"throws": "ValueError"},
    {"throws": [1]},
    {"pipe_target": {"actor_name": "hear"}},
    {"max_retries": "x"},
    {"run_id": "x"},
    {"scheduled_at": "x"},
    {"periodic": 1},
    {"group_callbacks": [1]},
]


class TestNotMessages:
    """Whatever is on a queue, the worker continues with the next message."""

    @pytest.mark.parametrize(
        ("rubbish", "reason"),
        [
            (b"\xff\xfe\x00 corrupt", "corrupt"),
            (b"", "corrupt"),
            (b"{", "corrupt"),
            (b"[1, 2]", "corrupt"),
            (b'"text"', "corrupt"),
            (b"null", "corrupt"),
            (b"{}", "corrupt"),
            (b'{"actor_name": "hear"}', "corrupt"),
            (body(extra=1), "corrupt"),
            (body(options=...), "corrupt"),
            (body(queue_name="elsewhere"), "not ours"),
            (body(options={}), "not ours"),
            (body(options={"redis_message_id": 7}), "not ours"),
            (body(options=[]), "not ours"),
            (body(kwargs=[]), "not ours"),
            (body(actor_name=None), "not ours"),
            (body(actor_name=["hear"]), "not ours"),
            (body(message_id={}), "not ours"),
            (body(options={"redis_message_id": "x", "throws": "ValueError"}), "not ours"),
            (body(options={"redis_message_id": "x", "run_id": 10**30}), "not ours"),
            (body(options={"redis_message_id": "x", "run_id": True}), "not ours"),
            (body(actor_name="uninstalled"), "orphaned"),
            (None, "no body"),
        ],
    )
    def test_it_is_set_aside_and_counted_and_the_next_message_is_served(
        self, serve, hear, heard, rubbish, reason, caplog
    ):
        service = serve(hear)
        before = rejected(reason)
        service.put(rubbish, "hostile")
        service.broker.get_actor("hear").send(word="next")
        service.work()

        heard.wait_for("next")

        eventually(lambda: service.fetched() == 0, within=5)
        assert heard.words == ["next"]
        assert rejected(reason) == before + 1
        assert service.dead_letters() == ([] if rubbish is None else [rubbish])
        told = [] if reason == "orphaned" else [MessageRejected("default", reason)]
        assert emitted(caplog, "message.rejected") == told

    def test_a_body_of_many_megabytes_of_nesting_is_set_aside(self, serve, hear, heard):
        service = serve(hear)
        service.put(b"[" * 100_000, "hostile")
        service.broker.get_actor("hear").send(word="next")
        service.work()

        heard.wait_for("next")

        eventually(lambda: service.fetched() == 0, within=5)

    def test_several_of_the_same_are_all_set_aside(self, serve, hear, heard):
        service = serve(hear)
        for number in range(20):
            service.put(b"the same", f"hostile {number}")
        service.broker.get_actor("hear").send(word="next")
        service.work()

        heard.wait_for("next")

        eventually(lambda: service.redis.zcard("dramatiq:default.XQ") == 20, within=5)
        eventually(lambda: service.fetched() == 0, within=5)

    @pytest.mark.parametrize("word", ["hostile", 7], ids=["right", "wrong arguments"])
    def test_hostile_options_end_no_thread(self, serve, hear, heard, word):
        service = serve(hear)
        for number, options in enumerate(HOSTILE_OPTIONS):
            redis_id = f"hostile {number}"
            service.put(body(options={"redis_message_id": redis_id, **options}, kwargs={"word": word}), redis_id)
        worker = service.work(threads=1)
        eventually(lambda: service.waiting() == 0 and service.fetched() == 0, within=10)

        service.broker.get_actor("hear").send(word="next")

        heard.wait_for("next")
        assert all(thread.is_alive() for thread in [*worker.workers, *worker.consumers.values()])

    def test_a_number_that_no_run_has_is_dropped(self, serve, heard):
        service = serve(job("work")(lambda run: heard.add("worked")))
        for number, run_id in enumerate([0, -1, 10**30, True]):
            fields = {"redis_message_id": f"hostile {number}", "run_id": run_id}
            service.put(body(actor_name="work", kwargs={}, options=fields), f"hostile {number}")
        service.work()

        eventually(lambda: service.waiting() == 0 and service.fetched() == 0, within=5)
        assert heard.words == []

    def test_a_message_that_names_another_jobs_run_does_not_touch_it(self, serve, heard, ledger):
        service = serve(job("work")(lambda run: heard.add("worked")), job("other")(lambda run: heard.add("other")))
        run_id = ledger.request("other")
        service.put(body(actor_name="work", kwargs={}, options={"redis_message_id": "x", "run_id": run_id}), "x")
        service.work()

        eventually(lambda: service.waiting() == 0 and service.fetched() == 0, within=5)
        assert heard.words == []
        assert ledger.run(run_id).state == "queued"


class TestWakeUp:
    """A wake-up token starts an idle worker at once. Without a token, the worker finds the message at its next poll."""

    def test_an_idle_worker_gets_a_message_long_before_its_poll(self, serve, hear, heard):
        service = serve(hear)
        service.work(poll_ms=1000)
        actor = service.broker.get_actor("hear")
        actor.send(word="warm")
        heard.wait_for("warm")
        delays = []
        for number in range(8):
            sent_at = time.monotonic()
            actor.send(word=str(number))
            delays.append(heard.wait_for(str(number)) - sent_at)

        assert statistics.median(delays) < 0.3

    def test_an_idle_worker_gets_a_run_long_before_its_poll(self, serve, heard, database):
        service = serve(job("work", overlap="allow")(lambda run: heard.add(run.id)))
        service.work(poll_ms=1000)
        delays = []
        for _ in range(8):
            with Session(database) as session, session.begin():
                run_id = enqueue(session, "work")
            sent_at = time.monotonic()
            delays.append(heard.wait_for(run_id) - sent_at)

        assert statistics.median(delays) < 0.3

    def test_a_producer_that_pushes_no_token_is_served_by_the_next_poll(self, serve, hear, heard, redis_url):
        service = serve(hear)
        service.work(poll_ms=1000)
        plain = RedisBroker(url=redis_url)
        plain.declare_queue("default")
        with closing(plain):
            sent_at = time.monotonic()
            plain.enqueue(
                Message(queue_name="default", actor_name="hear", args=(), kwargs={"word": "plain"}, options={})
            )

            assert heard.wait_for("plain") - sent_at < 2.5

    def test_tokens_do_not_pile_up(self, serve, hear):
        service = serve(hear)
        for number in range(200):
            service.broker.get_actor("hear").send(word=str(number))

        assert service.redis.llen(service.broker.redis_queues.wake_key("default")) <= 64
        assert 0 < service.redis.pttl(service.broker.redis_queues.wake_key("default")) <= 5_000

    def test_a_backlog_beyond_the_window_is_served_without_a_pause(self, serve, hear, heard):
        service = serve(hear)
        for number in range(300):
            service.broker.get_actor("hear").send(word=str(number))
        began = time.monotonic()
        service.work(threads=1, poll_ms=1000)
        for number in range(300):
            heard.wait_for(str(number))

        assert time.monotonic() - began < 10
        assert len(heard.words) == 300

    def test_a_worker_whose_window_was_full_goes_on_once_it_is_half_empty(self, serve, heard):
        go_on = threading.Event()

        @job("hear", ledger=False)
        def hear(run, word: str):
            assert go_on.wait(10)
            heard.add(word)

        service = serve(hear)
        for number in range(30):
            service.broker.get_actor("hear").send(word=str(number))
        service.work(threads=2, poll_ms=1000)
        eventually(lambda: service.waiting() < 30, within=5)
        go_on.set()
        began = time.monotonic()
        for number in range(30):
            heard.wait_for(str(number))

        assert time.monotonic() - began < 3


class TestAcknowledgements:
    """A message that was worked on is not delivered again, even if Redis was away when it should have been
    acknowledged.
    """

    def test_everything_is_acknowledged_in_the_end(self, serve, hear, heard):
        service = serve(hear)
        for number in range(100):
            service.broker.get_actor("hear").send(word=str(number))
        service.work(threads=4)
        heard.wait_for("99")

        eventually(lambda: service.fetched() == 0, within=5)
        assert service.redis.hlen("dramatiq:default.msgs") == 0

    def test_acknowledgements_that_failed_are_sent_later(self, serve, hear, heard, monkeypatch):
        service = serve(hear)
        queues, failures = service.broker.redis_queues, []
        acknowledge = queues.acknowledge

        def fail_twice(queue_name, redis_ids):
            if len(failures) < 2:
                failures.append(redis_ids)
                raise ConnectionError("away on purpose")
            acknowledge(queue_name, redis_ids)

        monkeypatch.setattr(queues, "acknowledge", fail_twice)
        service.broker.get_actor("hear").send(word="first")
        service.broker.get_actor("hear").send(word="second")
        service.work()
        heard.wait_for("second")

        eventually(lambda: service.redis.hlen("dramatiq:default.msgs") == 0, within=10)
        assert len(failures) == 2
        assert service.fetched() == 0

    def test_acknowledgements_that_a_fault_of_ours_kept_are_sent_later(self, serve, hear, heard, monkeypatch, caplog):
        service = serve(hear)

        def broken(*_):
            monkeypatch.undo()
            raise KeyError("broken on purpose")

        monkeypatch.setattr(service.broker.redis_queues, "acknowledge", broken)
        service.broker.get_actor("hear").send(word="only")
        service.work()

        eventually(lambda: service.redis.hlen("dramatiq:default.msgs") == 0, within=10)
        assert emitted(caplog, "message.not_acknowledged") == [MessageNotAcknowledged()]
        assert "KeyError: 'broken on purpose'" in caplog.text

    def test_what_is_left_is_sent_when_the_broker_is_closed(self, serve, hear, heard):
        service = serve(hear)
        service.broker.get_actor("hear").send(word="only")
        worker = service.work()
        heard.wait_for("only")
        worker.stop()
        service.broker.close()

        assert service.redis.hlen("dramatiq:default.msgs") == 0

    def test_a_restart_of_redis_is_survived_and_nothing_is_done_twice(
        self, servers_folder, tmp_path, serve_on, heard, ledger, database
    ):
        server = EmbeddedRedis(servers_folder / tmp_path.name)
        server.start()
        try:
            service = serve_on(server.url, job("work", overlap="allow")(lambda run: heard.add(run.id)))
            service.work()
            with Session(database) as session, session.begin():
                before = enqueue(session, "work")
            heard.wait_for(before)
            server.stop()
            with Session(database) as session, session.begin():
                meanwhile = enqueue(session, "work")
            server.start()
            with Session(database) as session, session.begin():
                after = enqueue(session, "work")

            heard.wait_for(after, within=20)
            eventually(lambda: service.fetched() == 0, within=5)
        finally:
            server.stop()
        assert heard.words == [before, after]
        assert ledger.run(meanwhile).state == "queued"  # the dispatcher would send this run, but none runs in this test


class TestRecover:
    """The messages that a dead process had fetched."""

    def test_it_is_served_by_another(self, serve, hear, heard, redis_url):
        service = serve(hear)
        service.broker.get_actor("hear").send(word="fetched")
        client = connect(redis_url)
        dead = type(service.broker)(client)
        dead.declare_queue("default")
        assert len(dead.do_fetch("default", 1)) == 1
        client.close()
        service.work()
        assert heard.words == []

        service.broker.redis_queues.recover(dead.broker_id)

        heard.wait_for("fetched")

    def test_it_is_put_back_on_a_queue_that_only_others_have(self, serve, hear, redis_url):
        service = serve(hear)
        client = connect(redis_url)
        dead = type(service.broker)(client)
        dead.declare_queue("theirs")
        service.put(b"anything", "fetched", "theirs")
        assert len(dead.do_fetch("theirs", 1)) == 1
        assert service.waiting("theirs") == 0

        service.broker.redis_queues.recover(dead.broker_id, ["theirs"])

        assert service.waiting("theirs") == 1
        client.close()

    def test_dead_letters_are_dropped_after_a_week(self, serve, hear):
        service = serve(hear)
        week_ms = 7 * 24 * 3600 * 1000
        now_ms = int(service.redis.time()[0]) * 1000
        for name, at_ms in (("old", now_ms - week_ms - 60_000), ("young", now_ms - week_ms + 60_000)):
            service.redis.zadd("dramatiq:default.XQ", {name: at_ms})
            service.redis.hset("dramatiq:default.XQ.msgs", name, name)

        service.broker.redis_queues.maintain()

        assert service.dead_letters() == [b"young"]
