"""I2, I8: every slot has one row and one effect, whichever process fires it and whichever dies."""

from collections import Counter
from datetime import datetime, timedelta
from statistics import quantiles

import pytest

from tests.support.eventually import elapse, eventually
from tests.support.lengths import AWAY_SECONDS, WATCHED_SECONDS

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120 + 2 * WATCHED_SECONDS)]

SECOND = timedelta(seconds=1)
#: In seconds: without a scheduler, the dispatcher starts a slot within this time.
LATEST_WITHOUT_SCHEDULER = 2.0


def test_three_schedulers_and_three_workers_serve_every_slot_once(make_fleet, record_property):
    fleet = make_fleet(jobs="tick,half-minute")
    schedulers = fleet.together(*[fleet.scheduler] * 3, *[fleet.worker] * 3)[:3]
    since = accounted_since(fleet, "tick")
    elapse(WATCHED_SECONDS)
    until = next_second(fleet)

    assert_served_once(fleet, "tick", 1, since, until)
    assert_served_once(fleet, "half-minute", 30, since, until)
    record_property("lateness_p50_p99_max", summary(lateness(fleet, "tick", since, until)))

    for scheduler in schedulers:
        fleet.kill(scheduler)
    killed_at = next_second(fleet)
    elapse(10)
    until = next_second(fleet)

    assert_served_once(fleet, "tick", 1, since, until)
    late = lateness(fleet, "tick", killed_at, until)
    record_property("lateness_without_scheduler_p50_p99_max", summary(late))
    assert max(late) <= LATEST_WITHOUT_SCHEDULER


def test_a_database_that_is_away_neither_ends_periodiq_nor_loses_a_slot(make_fleet, own_postgres):
    fleet = make_fleet(jobs="tick", postgres_url=own_postgres.url)
    scheduler, worker = fleet.together(fleet.scheduler, fleet.worker)
    since = accounted_since(fleet, "tick")

    own_postgres.kill()
    elapse(AWAY_SECONDS)
    own_postgres.start()
    fleet.engine.dispose()
    eventually(lambda: fleet.registered("scheduler", scheduler) and fleet.registered("worker", worker))
    elapse(3)
    until = next_second(fleet)

    assert (scheduler.poll(), worker.poll()) == (None, None)
    assert_served_once(fleet, "tick", 1, since, until)


def test_a_redis_that_is_away_neither_ends_periodiq_nor_loses_a_slot(make_fleet, own_redis):
    fleet = make_fleet(jobs="tick", redis_url=own_redis.url)
    scheduler, worker = fleet.together(fleet.scheduler, fleet.worker)
    since = accounted_since(fleet, "tick")

    own_redis.kill()
    elapse(AWAY_SECONDS)
    own_redis.start()
    elapse(3)
    until = next_second(fleet)

    assert (scheduler.poll(), worker.poll()) == (None, None)
    assert_served_once(fleet, "tick", 1, since, until)


def accounted_since(fleet, job: str) -> datetime:
    """Return the first full second from which on the job's slots are accounted for."""
    mark = "SELECT accounted_until FROM rota_schedules WHERE job = :job"
    eventually(lambda: fleet.rows(mark, job=job))
    return next_second(fleet)


def next_second(fleet) -> datetime:
    """Return the next full second of the database's clock."""
    return fleet.now().replace(microsecond=0) + SECOND


def assert_served_once(fleet, job: str, every: int, since: datetime, until: datetime) -> None:
    """Assert that each slot with ``since`` <= slot < ``until`` has one row, which succeeds, and one effect."""
    expected = Counter(slots_between(every, since, until))

    def slots_in(table: str, condition: str = "true") -> Counter[datetime]:
        query = f"SELECT slot FROM {table} WHERE job = :job AND slot >= :since AND slot < :until AND {condition}"
        return Counter(row.slot for row in fleet.rows(query, job=job, since=since, until=until))

    try:
        eventually(lambda: slots_in("rota_runs", "state = 'succeeded'") == expected)
    except AssertionError:
        others = "SELECT slot, state, reason, attempt, error FROM rota_runs WHERE job = :job AND state <> 'succeeded'"
        raise AssertionError(f"{fleet.rows(others, job=job)}; missing: {expected - slots_in('rota_runs')}") from None
    assert slots_in("rota_runs") == expected
    assert slots_in("effects") == expected


def slots_between(every: int, since: datetime, until: datetime) -> list[datetime]:
    seconds = range(int(since.timestamp()), int(until.timestamp()))
    return [datetime.fromtimestamp(second, since.tzinfo) for second in seconds if second % every == 0]


def lateness(fleet, job: str, since: datetime, until: datetime) -> list[float]:
    """Return how late the slots were started, in seconds."""
    query = "SELECT started_at - slot AS late FROM rota_runs WHERE job = :job AND slot >= :since AND slot < :until"
    return [row.late.total_seconds() for row in fleet.rows(query, job=job, since=since, until=until)]


def summary(seconds: list[float]) -> str:
    hundredths = quantiles(seconds, n=100)
    return " ".join(f"{value:.3f}" for value in (hundredths[49], hundredths[98], max(seconds)))
