"""Never more runs are at work than a limit allows, also when processes are killed; and the others go on."""

import pytest

from tests.support.eventually import eventually

pytestmark = pytest.mark.crash


def states(fleet):
    return [run.state for run in fleet.runs("narrow")]


def test_a_limit_holds_when_the_worker_of_its_holders_is_killed(make_fleet):
    fleet = make_fleet(jobs="narrow")
    victim, _ = fleet.together(fleet.worker, fleet.worker)

    asked = fleet.request("narrow", 60)
    eventually(lambda: len(fleet.effects("narrow")) > 5, within=60)
    fleet.kill(victim)
    eventually(lambda: not {"queued", "running", "retrying"} & {*states(fleet)}, within=120)

    assert states(fleet) == ["succeeded"] * len(asked), {run.error for run in fleet.runs("narrow")}
    assert sorted(effect.run_id for effect in fleet.effects("narrow")) == asked


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


def test_a_limit_holds_in_local_mode(make_fleet):
    fleet = make_fleet(jobs="narrow")
    fleet.start("rota", "worker", SCHEDULER_MODE="local")

    asked = fleet.request("narrow", 30)

    eventually(lambda: states(fleet) == ["succeeded"] * len(asked), within=60)
