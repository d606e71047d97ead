"""I4: no run is lost when Redis loses its data, and no run is executed twice because of that."""

import pytest

from tests.support.eventually import elapse, eventually
from tests.support.lengths import AWAY_SECONDS

pytestmark = pytest.mark.crash

RUNS = 1000
QUEUE = "dramatiq:chaos"


@pytest.fixture
def busy(make_fleet, own_redis):
    """Start two workers that work on a thousand runs, most of which wait in Redis."""
    fleet = make_fleet(jobs="nap", redis_url=own_redis.url)
    fleet.together(*[lambda: fleet.worker(threads=4)] * 2)
    fleet.request("nap", RUNS)
    eventually(lambda: len(fleet.effects("nap")) > 100, every=0.01)
    assert fleet.redis.llen(QUEUE) > RUNS // 4
    return fleet


def test_all_of_a_thousand_runs_end_once_each_when_redis_is_wiped(busy):
    busy.redis.flushall()

    assert_all_end_once(busy)


def test_all_of_a_thousand_runs_end_once_each_when_redis_is_stopped_and_started(busy, own_redis):
    own_redis.stop()
    elapse(AWAY_SECONDS)
    own_redis.start()

    assert_all_end_once(busy)


def test_all_of_a_thousand_runs_end_once_each_when_redis_comes_back_empty(busy, own_redis):
    own_redis.kill()
    elapse(1)
    own_redis.start()
    busy.redis.flushall()

    assert_all_end_once(busy)


def test_all_of_a_thousand_runs_end_once_each_when_their_messages_come_thrice(busy):
    run_ids = [run.id for run in busy.runs("nap")]

    busy.carry("nap", run_ids)
    busy.carry("nap", run_ids)

    assert_all_end_once(busy)
    eventually(lambda: busy.redis.llen(QUEUE) + busy.fetched("chaos") == 0)
    assert len(busy.effects("nap")) == RUNS


def assert_all_end_once(fleet) -> None:
    ended = "SELECT count(*) AS runs FROM rota_runs WHERE job = 'nap' AND state = 'succeeded'"
    eventually(lambda: fleet.rows(ended)[0].runs == RUNS)
    effects = [effect.run_id for effect in fleet.effects("nap")]
    assert len(effects) == len(set(effects)) == RUNS


def test_retries_of_the_fast_lane_go_on_when_redis_was_away_as_several_came_due(make_fleet, own_redis):
    fleet = make_fleet(jobs="fast", redis_url=own_redis.url)
    fleet.worker()
    for _ in range(3):
        fleet.send_fast("fast", fail=True)
    fleet.next_starts(3)
    eventually(lambda: fleet.fetched("chaos-fast.DQ") == 3, every=0.01)

    own_redis.kill()
    elapse(3)  # these runs have a delay of a second
    own_redis.start()

    fleet.next_starts(2 * 3, within=30)
