"""I4, I6: no request is lost, and retries and slots do not accumulate; with real processes."""

import statistics
from itertools import pairwise

import pytest

from tests.support.eventually import eventually

pytestmark = pytest.mark.crash

CUSTOMERS = ("ann", "bob", "cyd")


def states(fleet, job):
    return [run.state for run in fleet.runs(job)]


def test_fifty_requests_of_one_job_are_fifty_runs_in_their_order(make_fleet):
    fleet = make_fleet(jobs="bill")
    fleet.together(fleet.worker, fleet.worker)

    asked = fleet.request_in_turn("bill", [""] * 50)
    eventually(lambda: states(fleet, "bill") == ["succeeded"] * 50, within=60)

    assert [effect.run_id for effect in fleet.effects("bill")] == asked
    assert_one_after_another(fleet.runs("bill"))


def test_nine_invoices_of_three_customers_are_nine_runs(make_fleet):
    fleet = make_fleet(jobs="bill")
    fleet.together(fleet.worker, fleet.worker)

    fleet.request_in_turn("bill", CUSTOMERS * 3)
    eventually(lambda: states(fleet, "bill") == ["succeeded"] * 9, within=60)

    assert len(fleet.effects("bill")) == 9
    for customer in CUSTOMERS:
        assert_one_after_another([run for run in fleet.runs("bill") if run.key == customer])


def test_requests_wait_for_a_run_whose_worker_is_killed_and_for_those_it_leaves(make_fleet):
    fleet = make_fleet(jobs="bill")
    victim, _ = fleet.together(fleet.worker, fleet.worker)

    asked = fleet.request_in_turn("bill", CUSTOMERS * 40)
    eventually(lambda: len(fleet.effects("bill")) > 20, within=60)
    fleet.kill(victim)
    eventually(lambda: states(fleet, "bill") == ["succeeded"] * len(asked), within=120)

    assert sorted(effect.run_id for effect in fleet.effects("bill")) == asked
    for customer in CUSTOMERS:
        assert_one_after_another([run for run in fleet.runs("bill") if run.key == customer])


def test_requests_wait_in_local_mode_too(make_fleet):
    fleet = make_fleet(jobs="bill")
    fleet.start("rota", "worker", SCHEDULER_MODE="local")

    asked = fleet.request_in_turn("bill", CUSTOMERS * 5)
    eventually(lambda: states(fleet, "bill") == ["succeeded"] * len(asked), within=60)

    for customer in CUSTOMERS:
        assert_one_after_another([run for run in fleet.runs("bill") if run.key == customer])


def test_a_failing_job_is_tried_once_per_slot(make_fleet):
    fleet = make_fleet(jobs="failing-slot")
    fleet.together(fleet.worker, fleet.scheduler)

    starts = [(fleet.next_start(within=30), fleet.now())[1] for _ in range(12)]

    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(starts)]
    assert statistics.median(gaps) >= 1.5
    slots = fleet.rows("SELECT state, reason FROM rota_runs WHERE job = 'failing-slot' AND finished_at IS NOT NULL")
    gave_way = {("skipped", "retrying"), ("skipped", "overlap")}  # the latter if the machine was busy and late
    assert {(slot.state, slot.reason) for slot in slots} <= {*gave_way, ("dead", "retries")}
    most = max(sum(0 <= (other - start).total_seconds() < 10 for other in starts) for start in starts)
    assert most <= 6  # five slots come due in ten seconds, and the slot before them may be late


def assert_one_after_another(runs):
    """Assert that the runs were executed in the order of their requests, each after the end of the previous run."""
    for former, run in pairwise(runs):
        assert former.finished_at <= run.started_at, (former.id, run.id)
