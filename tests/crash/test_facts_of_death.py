"""Fact 8 about plain Dramatiq needs a process that dies. Fact 9 is in test_dead_workers.py, others in integration."""

import time

import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.message import Message

from tests.support import plain
from tests.support.eventually import elapse

pytestmark = pytest.mark.crash

ROTA_SECONDS = 3


def test_fact_8_plain_a_killed_workers_message_does_not_come_back_in_time(make_fleet):
    fleet = make_fleet(jobs="none")
    killed = fleet.start("dramatiq", "tests.support.plain", "--processes", "1")
    send_plain(fleet, 1)
    assert next_plain(fleet) == 1
    fleet.kill(killed)

    fleet.start("dramatiq", "tests.support.plain", "--processes", "1")
    send_plain(fleet, 2)
    assert next_plain(fleet) == 2  # the new worker is working
    elapse(ROTA_SECONDS)

    assert fleet.redis.llen(plain.STARTED) == 0
    assert sum(fleet.redis.scard(key) for key in fleet.redis.keys("plain:__acks__.*.default")) == 2


def test_fact_8_rota_a_killed_workers_message_of_the_fast_lane_comes_back_at_once(make_fleet, record_property):
    """For runs of the ledger see test_dead_workers.py."""
    fleet = make_fleet(jobs="fast-wait")
    fleet.together(fleet.worker, fleet.worker)
    fleet.send_fast("fast-wait")
    first = fleet.next_start()

    fleet.kill(fleet.group_of(first.pid))
    killed_at = time.monotonic()
    second = fleet.next_start(within=10)
    came_back_after = time.monotonic() - killed_at

    record_property("fast_lane_came_back_after_seconds", round(came_back_after, 2))
    assert came_back_after < ROTA_SECONDS
    assert second.pid != first.pid


def send_plain(fleet, number: int) -> None:
    broker = RedisBroker(url=fleet.redis_url, namespace=plain.NAMESPACE)
    broker.enqueue(Message(queue_name="default", actor_name="wait", args=(number,), kwargs={}, options={}))
    broker.close()


def next_plain(fleet) -> int:
    told = fleet.redis.blpop([plain.STARTED], timeout=30)
    assert told is not None, "plain Dramatiq did not start"
    return int(told[1])
