"""Polls are spread: in any second, at most 1.5 times as many keys are due as on average."""

from collections.abc import Sequence
from math import lcm

import pytest
from sqlalchemy.orm import Session

from core import Keyed, KeySchedule, every, job, schedule, sync_schedules
from core.ledger.key_schedules import MANY
from tests.support.racing import race

KEYED = Keyed(default=every(seconds=60))
RHYTHMS = [(60,), (300,), (30, 60, 120, 300, 600)]


@pytest.fixture(autouse=True)
def jobs(use_jobs):
    use_jobs(job("poll", keyed=KEYED)(lambda run: None))


@pytest.fixture
def session(database):
    with Session(database) as session:
        yield session


@pytest.fixture
def assert_spread(ledger):
    def assert_spread(keys=1000):
        found = ledger.rows("SELECT every_seconds, phase FROM rota_key_schedules")
        due = due_in_each_second([(row.every_seconds, row.phase) for row in found])
        assert len(found) == keys
        assert max(due) <= 1.5 * sum(due) / len(due)

    return assert_spread


def due_in_each_second(keys):
    """The number of slots in each second, until the rhythm of all keys together repeats."""
    due = [0] * lcm(*(interval for interval, _ in keys))
    for interval, phase in keys:
        for second in range(phase, len(due), interval):
            due[second] += 1
    return due


def wanted(rhythms: Sequence[int], first: int, last: int) -> list[KeySchedule]:
    return [
        KeySchedule(f"account-{number}", every(seconds=rhythms[number % len(rhythms)]).interval)
        for number in range(first, last)
    ]


@pytest.mark.parametrize("rhythms", RHYTHMS, ids=str)
def test_keys_that_are_synced_together_are_spread_also_after_half_of_them_are_replaced(session, assert_spread, rhythms):
    sync_schedules(session, "poll", wanted(rhythms, 0, 1000))
    session.commit()
    assert_spread()

    sync_schedules(session, "poll", wanted(rhythms, 500, 1500))
    session.commit()
    assert_spread()


def test_keys_that_are_added_one_by_one_are_spread(session, assert_spread):
    for each in wanted((300,), 0, 1000):
        schedule(session, "poll", key=each.key, every=each.every)
        session.commit()

    assert_spread()


def test_keys_that_transactions_add_at_the_same_time_are_spread(database, assert_spread):
    def add(first):
        with Session(database) as session, session.begin():
            for each in wanted((60,), first, first + 250):
                schedule(session, "poll", key=each.key, every=each.every)

    race(lambda: add(0), lambda: add(250))

    assert_spread(500)


def test_so_many_keys_that_reading_all_of_them_would_be_slow_are_spread(session, assert_spread):
    sync_schedules(session, "poll", wanted((10,), 0, 2 * MANY))
    for each in wanted((10,), 2 * MANY, 2 * MANY + 100):
        schedule(session, "poll", key=each.key, every=each.every)
    session.commit()

    assert_spread(2 * MANY + 100)
