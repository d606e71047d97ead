"""Never more runs are at work than a limit allows, even when processes are killed; and the other runs continue."""

import os
import signal
from datetime import timedelta

import pytest

from tests.support.eventually import eventually
from tests.support.fleet import pid_of
from tests.support.supervised import supervised

pytestmark = pytest.mark.crash

HELD = "SELECT id FROM rota_runs WHERE state = 'running' AND process_id = :process"
CRASHED = "SELECT max(ended_at) AS at FROM rota_attempts WHERE outcome = 'crashed'"
#: In seconds: a waiting run starts so soon after the runs of a dead process were recovered.
SOON = timedelta(seconds=10)


def states(fleet):
    return [run.state for run in fleet.runs("narrow")]


def kill_while_it_holds(fleet, worker):
    """Kill a registered worker that holds the limit. Return whether one was killed."""
    pid = pid_of(worker)
    os.kill(pid, signal.SIGSTOP)
    is_holding = bool(fleet.rows(HELD, process=worker.id))
    os.kill(pid, signal.SIGKILL if is_holding else signal.SIGCONT)
    return is_holding


def test_a_limit_holds_when_a_holder_and_redis_are_killed(make_fleet, own_redis):
    fleet = make_fleet(jobs="narrow", redis_url=own_redis.url)
    victim, _ = fleet.together(fleet.worker, fleet.worker)

    asked = fleet.request("narrow", 60)
    eventually(lambda: len(fleet.effects("narrow")) > 5, within=60)
    (holder,) = fleet.registered("worker", victim)
    eventually(lambda: kill_while_it_holds(fleet, holder), within=60)
    fleet.kill(victim)
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


def test_a_limit_holds_in_local_mode_when_the_holder_is_killed(make_fleet):
    fleet = make_fleet(jobs="narrow", environ={"SCHEDULER_MODE": "local"})
    with supervised(fleet) as service:
        (victim,) = service.workers()

        asked = fleet.request("narrow", 30)
        eventually(lambda: kill_while_it_holds(fleet, victim), within=60)

        eventually(lambda: states(fleet) == ["succeeded"] * len(asked), within=60)
        assert sum(run.crashes for run in fleet.runs("narrow")) in {1, 2}
