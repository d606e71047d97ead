"""Never more runs are at work than a limit allows, also when processes are killed; and the others go on."""

from datetime import timedelta

import pytest

from tests.support.eventually import eventually

pytestmark = pytest.mark.crash

HELD = "SELECT id FROM rota_runs WHERE state = 'running' AND process_id = ANY(CAST(:processes AS bigint[]))"
CRASHED = "SELECT max(ended_at) AS at FROM rota_attempts WHERE outcome = 'crashed'"
#: A run that waits for a limit starts within this after the runs of a dead process were recovered.
SOON = timedelta(seconds=10)


def states(fleet):
    return [run.state for run in fleet.runs("narrow")]


def kill_while_it_holds(fleet, worker):
    """Kill a worker that holds the limit; return whether it did."""
    fleet.pause(worker)
    if fleet.rows(HELD, processes=[process.id for process in fleet.registered("worker", worker)]):
        fleet.kill(worker)
        return True
    fleet.wake(worker)
    return False


def test_a_limit_holds_when_a_holder_and_redis_are_killed(make_fleet, own_redis):
    fleet = make_fleet(jobs="narrow", redis_url=own_redis.url)
    victim, _ = fleet.together(fleet.worker, fleet.worker)

    asked = fleet.request("narrow", 60)
    eventually(lambda: len(fleet.effects("narrow")) > 5, within=60)
    eventually(lambda: kill_while_it_holds(fleet, victim), within=60)
    own_redis.kill()
    done = len(fleet.effects("narrow"))
    eventually(lambda: len(fleet.effects("narrow")) > done + 5, within=60)
    own_redis.start()
    eventually(lambda: not {"queued", "running", "retrying"} & {*states(fleet)}, within=120)

    assert states(fleet) == ["succeeded"] * len(asked), {run.error for run in fleet.runs("narrow")}
    assert sorted(effect.run_id for effect in fleet.effects("narrow")) == asked
    assert sum(run.crashes for run in fleet.runs("narrow")) in {1, 2}


def test_the_next_run_starts_when_the_only_worker_with_holders_is_killed(make_fleet):
    fleet = make_fleet(jobs="narrow,wait-narrow")
    victim = fleet.worker()
    holders = fleet.request("wait-narrow", 2)
    assert sorted(started.run_id for started in fleet.next_starts(2)) == holders
    (waiting,) = fleet.request("narrow")
    eventually(lambda: fleet.runs("narrow")[0].waits_for == "narrow", within=30)

    fleet.worker()
    fleet.kill(victim)
    for run_id in holders:
        fleet.go_on(run_id)

    eventually(lambda: states(fleet) == ["succeeded"], within=60)
    assert fleet.effects("narrow")[0].run_id == waiting
    assert fleet.runs("narrow")[0].started_at - fleet.rows(CRASHED)[0].at < SOON


def test_a_limit_holds_in_local_mode(make_fleet):
    fleet = make_fleet(jobs="narrow")
    fleet.start("rota", "worker", SCHEDULER_MODE="local")

    asked = fleet.request("narrow", 30)

    eventually(lambda: states(fleet) == ["succeeded"] * len(asked), within=60)
