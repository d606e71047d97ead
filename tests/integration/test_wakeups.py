"""Consumers are woken by tokens, and every second by one thread of their process."""

import threading
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event

import pytest
from dramatiq.message import Message

from core.transport.redis import Queues, connect, wakeups
from core.transport.redis.error_log import ErrorLog
from core.transport.redis.wakeups import Wakeups
from tests.support.eventually import eventually


@dataclass
class Sleeper:
    """A consumer that records that it was woken."""

    queue_name: str
    has_room: bool = True
    woken: Event = field(default_factory=Event)

    def wake(self) -> None:
        self.woken.set()


@pytest.fixture
def queues(redis_url):
    with closing(connect(redis_url)) as client:
        yield Queues(client)


@pytest.fixture
def listening(queues):
    """The thread that waits for tokens, which has no consumer yet."""
    made = Wakeups(queues, ErrorLog(queues.client))
    yield made
    made.stop()
    eventually(lambda: not are_any_listening())  # otherwise it could take a token of the next test


def are_any_listening():
    return any(thread.name == "rota-wakeups" for thread in threading.enumerate())


@pytest.fixture
def looks(queues, monkeypatch):
    """Return the client of each check of the queues."""
    looks, look = [], queues.look

    def noted(names, client=None):
        looks.append(client)
        return look(names, client)

    monkeypatch.setattr(queues, "look", noted)
    return looks


def test_a_token_wakes_the_consumer_of_its_queue_alone(queues, listening):
    one, other = Sleeper("one"), Sleeper("other")
    listening.add(one)
    listening.add(other)

    queues.wake("one", 1)

    assert one.woken.wait(10)
    assert not other.woken.is_set()


def test_a_token_for_a_consumer_that_has_no_room_is_left_for_another_process(queues, listening):
    full, free = Sleeper("full", has_room=False), Sleeper("free")
    listening.add(full)
    listening.add(free)

    queues.wake("full", 1)
    queues.wake("free", 1)

    assert free.woken.wait(10)
    assert queues.client.llen(queues.wake_key("full")) == 1


def test_a_token_that_comes_at_the_end_of_a_process_is_left_for_another(queues, listening):
    sleeper = Sleeper("one")
    listening.add(sleeper)
    eventually(lambda: queues.client.info("clients")["blocked_clients"] == 1)

    listening.stop()
    queues.wake("one", 1)

    eventually(lambda: not are_any_listening())
    assert queues.client.llen(queues.wake_key("one")) == 1
    assert not sleeper.woken.is_set()


def test_a_token_for_a_consumer_that_has_gone_is_left_for_another_process(queues, listening):
    sleeper = Sleeper("one")
    listening.add(sleeper)
    eventually(lambda: queues.client.info("clients")["blocked_clients"] == 1)

    listening.remove(sleeper)
    queues.wake("one", 1)

    eventually(lambda: queues.client.info("clients")["blocked_clients"] == 0)
    eventually(lambda: queues.client.llen(queues.wake_key("one")) == 1)
    assert not sleeper.woken.is_set()


def test_messages_without_a_token_are_found_by_a_look(queues, listening):
    queues.enqueue_many([Message("one", "hear", (), {}, {})])
    queues.client.delete(queues.wake_key("one"))
    sleeper = Sleeper("one")

    listening.add(sleeper)

    assert sleeper.woken.wait(10)


def test_while_another_thread_looks_around_this_one_need_not(queues, listening, looks, redis_url, monkeypatch):
    monkeypatch.setattr(wakeups, "OTHERS_LOOK_SECONDS", 1.0)
    monkeypatch.setattr(wakeups, "LONG_BLOCK_SECONDS", 1)
    sleeper = Sleeper("one")
    with closing(connect(redis_url)) as others:
        listening.look_around(others)
        listening.add(sleeper)
        queues.wake("one", 1)
        assert sleeper.woken.wait(10)  # so the thread has made a whole round
        assert looks == [others]

        eventually(lambda: queues.client in looks, within=10)  # since the other thread has stopped
