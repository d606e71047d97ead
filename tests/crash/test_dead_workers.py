"""I7, I2: a dead worker's runs are taken up at once, and a paused one's too late commit changes nothing."""

import time

import pytest

from tests.support.eventually import eventually

pytestmark = pytest.mark.crash


def test_a_killed_workers_run_is_taken_up_within_3_s_and_has_one_effect(make_fleet):
    fleet = make_fleet(jobs="wait")
    victim, _ = fleet.worker(), fleet.worker()
    (run_id,) = fleet.request("wait")
    first = fleet.next_start()
    victims = {victim.pid, *child_pids(victim.pid)}
    killed = victim if first.pid in victims else fleet.processes[1]

    fleet.kill(killed)
    began = time.monotonic()
    second = fleet.next_start(within=10)
    taken_up_after = time.monotonic() - began
    fleet.go_on(run_id)

    assert taken_up_after < 3
    assert (second.run_id, second.attempt) == (run_id, 2)
    eventually(lambda: fleet.runs("wait")[0].state == "succeeded", within=10)
    assert [effect.attempt for effect in fleet.effects("wait")] == [2]


def test_a_worker_paused_past_its_lease_cannot_commit_when_it_wakes(make_fleet):
    fleet = make_fleet(jobs="wait", environ={"ROTA_LEASE_SECONDS": "3", "ROTA_HEARTBEAT_SECONDS": "0.5"})
    fleet.worker()
    (run_id,) = fleet.request("wait")
    first = fleet.next_start()
    fleet.worker()

    fleet.pause(fleet.processes[0])
    second = fleet.next_start(within=10)
    fleet.go_on(run_id)
    eventually(lambda: fleet.runs("wait")[0].state == "succeeded", within=10)
    fleet.wake(fleet.processes[0])
    eventually(lambda: len(fleet.registered("worker")) == 2, within=15)
    eventually(lambda: "run.lost" in fleet.logs() or "run.lease_lost" in fleet.logs(), within=15)

    assert (first.attempt, second.attempt) == (1, 2)
    assert [effect.attempt for effect in fleet.effects("wait")] == [2]
    assert fleet.runs("wait")[0].state == "succeeded"


def child_pids(pid: int) -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process(pid).children(recursive=True)}
