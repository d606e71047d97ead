"""Cache entries without a TTL are deleted when they were unused for more than seven days."""

import json
from datetime import datetime, timedelta

import pytest
import redis
from maintenance_world import A_MOMENT, NOON

from core import NaiveTime
from plugins.maintenance import cache
from plugins.maintenance.application_redis import STEP
from plugins.maintenance.cache import delete_unused

SEVEN_DAYS = timedelta(days=7)
DUE = NOON + SEVEN_DAYS + A_MOMENT
#: The smallest number that counts as a time: 9 September 2001.
OLD = 10**9


@pytest.fixture
def store(redis_url):
    """Return the application's Redis, without keys."""
    connection = redis.Redis.from_url(redis_url)
    yield connection
    connection.close()


@pytest.mark.parametrize(
    "time",
    [
        *[NOON.timestamp(), int(NOON.timestamp() * 1000), str(NOON.timestamp()), NOON.isoformat()],
        *["2026-01-05T12:00:00", "2026-01-05T13:00+01:00", "2026-01-05 12:00:00Z"],
    ],
    ids=str,
)
def test_after_more_than_seven_days_and_not_at_exactly_seven(store, time):
    store.set("cache:json", json.dumps({"value": "x", "timestamp": time}))
    store.hset("cache:hash", mapping={"value": "x", "last_used_at": time})

    assert delete_unused(store, NOON + SEVEN_DAYS) == {"deleted": 0, "untimed": 0}
    assert delete_unused(store, DUE) == {"deleted": 2, "untimed": 0}
    assert delete_unused(store, DUE) == {"deleted": 0, "untimed": 0}
    assert store.dbsize() == 0


@pytest.mark.parametrize("time", [20260105, "20260105", "2026-01-05"], ids=repr)
def test_a_date_is_good_until_its_end(store, time):
    store.set("cache:json", json.dumps({"timestamp": time}))
    store.hset("cache:hash", mapping={"timestamp": time})
    end = NOON.replace(day=6, hour=0)

    assert delete_unused(store, end + SEVEN_DAYS) == {"deleted": 0, "untimed": 0}
    assert delete_unused(store, end + SEVEN_DAYS + A_MOMENT) == {"deleted": 2, "untimed": 0}


@pytest.mark.parametrize("time", [202601051200, "202601051200", 20260105120000, "20260105120000"], ids=repr)
def test_a_date_and_a_time_in_digits_are_no_seconds(store, time):
    store.set("cache:json", json.dumps({"timestamp": time}))

    assert delete_unused(store, NOON + SEVEN_DAYS) == {"deleted": 0, "untimed": 0}
    assert delete_unused(store, DUE) == {"deleted": 1, "untimed": 0}


@pytest.mark.parametrize("time", [2026, "2026", 1, 0, -5, 20261399, "20261399", 99999999999, 1e15, "1767614400123456"])
def test_a_number_that_is_neither_a_time_nor_a_date_is_left_alone(store, time):
    store.set("cache:json", json.dumps({"timestamp": time}))

    assert delete_unused(store, DUE) == {"deleted": 0, "untimed": 1}


def test_a_time_without_a_zone_is_refused(store):
    with pytest.raises(NaiveTime):
        delete_unused(store, DUE.replace(tzinfo=None))


def test_the_newer_of_two_times_counts(store):
    later = (NOON + timedelta(days=5)).isoformat()
    store.set("cache:used", json.dumps({"timestamp": NOON.isoformat(), "last_used_at": later}))
    store.set("cache:written", json.dumps({"timestamp": later, "last_used_at": NOON.isoformat()}))
    store.set("cache:half", json.dumps({"timestamp": "?", "last_used_at": NOON.isoformat()}))

    assert delete_unused(store, DUE) == {"deleted": 1, "untimed": 0}
    assert not store.exists("cache:half")


def test_a_key_with_a_ttl_is_left_to_redis(store):
    store.set("cache:a", json.dumps({"timestamp": OLD}), ex=1000)

    assert delete_unused(store, DUE) == {"deleted": 0, "untimed": 0}
    assert store.exists("cache:a")


@pytest.mark.parametrize(
    "value",
    [
        *["not json", "{}", "[1]", "12", "null", '{"timestamp": null}', '{"timestamp": "yesterday"}', "\udcff"],
        *['{"timestamp": {}}', '{"timestamp": 1e300}', '{"timestamp": -1e300}', '{"timestamp": "nan"}', "[" * 2000],
        *[
            '{"timestamp": "infinity"}',
            '{"timestamp": ""}',
            '{"timestamp": true}',
            '{"timestamp": NaN}',
            "x" * 1_000_001,
        ],
        '{"timestamp": "0001-01-01T00:00:00+23:59"}',
    ],
    ids=lambda value: repr(value[:40]),
)
def test_an_entry_whose_time_cannot_be_read_is_left_alone_and_counted(store, value):
    store.set("cache:odd", value.encode(errors="surrogateescape"))
    store.set("cache:old", json.dumps({"timestamp": OLD}))

    assert delete_unused(store, DUE) == {"deleted": 1, "untimed": 1}
    assert store.exists("cache:odd")


def test_other_types_and_other_names_are_left_alone(store):
    store.lpush("cache:list", "x")
    store.hset("cache:hash", "value", "x")
    old = json.dumps({"timestamp": OLD})
    for name in ("cache", "xcache:a", "session:a", "Cache:a"):
        store.set(name, old)

    assert delete_unused(store, DUE) == {"deleted": 0, "untimed": 2}
    assert store.dbsize() == 6


@pytest.mark.parametrize("time", [4102444800, "9999-12-31T23:59:59+00:00", 9e13])
def test_a_time_to_come_is_kept(store, time):
    store.set("cache:a", json.dumps({"timestamp": time}))

    assert delete_unused(store, DUE)["deleted"] == 0


def test_an_entry_used_between_looking_and_deleting_stays(store, monkeypatch):
    """If the entry has another value, or a TTL, it is not the entry that the job has read."""
    changes = {
        "cache:used": lambda: store.set("cache:used", json.dumps({"timestamp": DUE.timestamp()})),
        "cache:again": lambda: store.set(
            "cache:again", json.dumps({"timestamp": OLD, "last_used_at": DUE.timestamp()})
        ),
        "cache:ttl": lambda: store.expire("cache:ttl", 100),
        "cache:gone": lambda: store.delete("cache:gone"),
        "cache:type": lambda: (store.delete("cache:type"), store.lpush("cache:type", "x")),
    }
    for key in (*changes, "cache:same"):
        store.set(key, json.dumps({"timestamp": OLD}))
    judge = cache._last_used

    def meanwhile(times):
        for change in changes.values():
            change()
        return judge(times)

    monkeypatch.setattr(cache, "_last_used", meanwhile)

    assert delete_unused(store, DUE)["deleted"] == 1
    assert sorted(store.keys()) == [b"cache:again", b"cache:ttl", b"cache:type", b"cache:used"]


def test_any_number_of_keys_in_bounded_steps(store):
    with store.pipeline() as pipeline:
        for number in range(4 * STEP):
            time = NOON if number % 2 else datetime(2030, 1, 1, tzinfo=NOON.tzinfo)
            pipeline.set(b"cache:\xff%d" % number, json.dumps({"timestamp": time.isoformat()}))
        pipeline.execute()
    progress = []

    counts = delete_unused(store, DUE, checkpoint=lambda counts: progress.append(counts["deleted"]))

    assert counts == {"deleted": 2 * STEP, "untimed": 0}
    assert len(progress) >= 4
    assert store.dbsize() == 2 * STEP
