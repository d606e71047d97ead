"""I7, I2: the runs of a dead worker are recovered at once, and the late commit of a paused worker changes nothing."""

import os
import signal
import time

import pytest

from tests.support.eventually import eventually

pytestmark = pytest.mark.crash

SHORT_LEASE = {"ROTA_LEASE_SECONDS": "3", "ROTA_HEARTBEAT_SECONDS": "0.5"}


def attempts_of(fleet, run_id):
    """Return the kept attempts of a run, with their outcomes."""
    rows = fleet.rows("SELECT attempt, outcome FROM rota_attempts WHERE run_id = :id ORDER BY attempt", id=run_id)
    return [(row.attempt, row.outcome) for row in rows]


def test_a_killed_workers_run_is_taken_up_within_3_s_and_has_one_effect(make_fleet, record_property):
    fleet = make_fleet(jobs="wait")
    fleet.together(fleet.worker, fleet.worker)
    (run_id,) = fleet.request("wait")
    first = fleet.next_start()

    fleet.kill(fleet.group_of(first.pid))
    killed_at = time.monotonic()
    second = fleet.next_start(within=10)
    taken_up_after = time.monotonic() - killed_at
    fleet.go_on(run_id)

    record_property("taken_up_after_seconds", round(taken_up_after, 2))
    assert taken_up_after < 3
    assert (second.run_id, second.attempt) == (run_id, 2)
    eventually(lambda: fleet.runs("wait")[0].state == "succeeded")
    assert [effect.attempt for effect in fleet.effects("wait")] == [2]


def test_a_killed_workers_run_is_taken_up_within_3_s_while_a_backlog_is_due(make_fleet, record_property):
    """A request in another queue does not wait until the backlog is sent."""
    fleet = make_fleet(jobs="wait,nothing,fast")
    leading = fleet.worker("--queues", "chaos-fast")  # it leads and sends runs, and works on none of them
    eventually(fleet.leader)
    fleet.together(fleet.worker, fleet.worker)
    (run_id,) = fleet.request("wait")
    first = fleet.next_start()
    killed = fleet.group_of(first.pid)
    assert fleet.group_of(fleet.leader()) is leading

    fleet.request("nothing", 200_000, queue="backlog")
    time.sleep(1)  # the leader is sending the backlog
    fleet.kill(killed)
    killed_at = time.monotonic()
    eventually(lambda: fleet.runs("wait")[0].crashes == 1)
    recovered_after = time.monotonic() - killed_at
    second = fleet.next_start(within=60)
    taken_up_after = time.monotonic() - killed_at
    asked_at = time.monotonic()
    (asked,) = fleet.request("wait")
    third = fleet.next_start(within=60)
    started_after = time.monotonic() - asked_at

    record_property("recovered_after_seconds", round(recovered_after, 2))
    record_property("taken_up_after_seconds", round(taken_up_after, 2))
    record_property("started_after_seconds", round(started_after, 2))
    assert (recovered_after < 3, taken_up_after < 5, started_after < 3) == (True, True, True)
    assert (second.run_id, second.attempt, third.run_id) == (run_id, 2, asked)
    assert fleet.rows("SELECT 1 FROM rota_runs WHERE queue = 'backlog' AND sent_at IS NULL LIMIT 1")


@pytest.mark.parametrize("role", ["leading", "following"])
@pytest.mark.parametrize("job", ["wait", "lock"])
def test_a_worker_paused_past_its_lease_cannot_commit_when_it_wakes(make_fleet, job, role):
    """The row locks of the first attempt do not delay the second attempt, whether or not the paused process leads."""
    fleet = make_fleet(jobs=f"{job},fast", environ=SHORT_LEASE)
    if role == "following":
        fleet.worker("--queues", "chaos-fast")
    paused = fleet.worker()
    (run_id,) = fleet.request(job)
    first = fleet.next_start()
    fleet.worker()
    assert (fleet.group_of(fleet.leader()) is paused) == (role == "leading")

    fleet.pause(paused)
    second = fleet.next_start(within=15)
    fleet.go_on(run_id)
    eventually(lambda: fleet.runs(job)[0].state == "succeeded")
    fleet.wake(paused)
    eventually(lambda: fleet.registered("worker", paused))
    eventually(lambda: "run.lease_lost" in fleet.logs())

    assert (first.attempt, second.attempt) == (1, 2)
    assert [effect.attempt for effect in fleet.effects(job)] == [2]
    (run,) = fleet.runs(job)
    assert (run.state, run.attempt, run.failures) == ("succeeded", 2, 0)


def test_a_run_that_keeps_killing_its_worker_is_dead_after_three_and_others_are_handed_on(make_fleet):
    fleet = make_fleet(jobs="wait,crash")
    innocent = fleet.request("wait", 3)
    (culprit,) = fleet.request("crash")

    crash_beside_others(fleet, culprit, others=3)
    worker = fleet.worker()
    fleet.next_starts(4)
    for run_id in innocent:
        fleet.go_on(run_id)
    eventually(lambda: {run.state for run in fleet.runs("wait")} == {"succeeded"})
    fleet.go_on(culprit, attempts=1)
    worker.wait(20)
    worker = fleet.worker()
    fleet.next_start()
    fleet.go_on(culprit, attempts=1)

    eventually(lambda: fleet.runs("crash")[0].state == "dead")
    assert worker.poll() is None, "the third attempt has a process of its own"
    (dead,) = fleet.runs("crash")
    assert (dead.reason, dead.attempt, dead.crashes, dead.failures) == ("crashes", 3, 3, 0)
    assert [(run.attempt, run.crashes) for run in fleet.runs("wait")] == [(2, 1)] * 3
    assert sorted(effect.run_id for effect in fleet.effects("wait")) == innocent
    assert attempts_of(fleet, culprit) == [(1, "crashed"), (2, "crashed"), (3, "crashed")]
    assert [attempts_of(fleet, run_id) for run_id in innocent] == [[(1, "crashed"), (2, "succeeded")]] * 3


def test_a_run_that_keeps_killing_its_worker_takes_no_other_with_it_that_is_always_beside_it(make_fleet):
    """At its third attempt, each of these runs gets a separate process, one after another. Only the process of the run
    that kills dies.
    """
    fleet = make_fleet(jobs="wait,crash")
    innocent = fleet.request("wait", 3)
    (culprit,) = fleet.request("crash")
    for _ in range(2):
        crash_beside_others(fleet, culprit, others=3)

    worker = fleet.worker()
    fleet.go_on(culprit, attempts=1)
    for run_id in innocent:
        fleet.go_on(run_id)

    eventually(lambda: fleet.runs("crash")[0].state == "dead")
    eventually(lambda: {run.state for run in fleet.runs("wait")} == {"succeeded"})
    assert worker.poll() is None


def crash_beside_others(fleet, culprit: int, *, others: int) -> None:
    """Start a worker. Let the run kill the worker when the run and so many other runs are working."""
    worker = fleet.worker()
    fleet.next_starts(others + 1)
    fleet.go_on(culprit, attempts=1)
    worker.wait(20)


def test_when_one_of_two_processes_dies_dramatiq_ends_both_and_a_restarted_worker_takes_over(make_fleet):
    """Fact 9. In production, the supervisor starts the workers again."""
    fleet = make_fleet(jobs="wait,touch")
    worker = fleet.worker(processes=2)
    (run_id,) = fleet.request("wait")
    first = fleet.next_start()

    os.kill(first.pid, signal.SIGKILL)
    fleet.go_on(run_id)  # the other process may take the run before Dramatiq ends it
    status = worker.wait(30)
    eventually(lambda: not fleet.registered("worker", worker), within=5)
    fleet.request("touch")
    fleet.worker(processes=2)

    assert status != 0
    eventually(lambda: fleet.runs("touch")[0].state == "succeeded")
    eventually(lambda: fleet.runs("wait")[0].state == "succeeded")
    assert [effect.attempt for effect in fleet.effects("wait")] == [2]


def test_a_worker_that_is_asked_to_stop_finishes_what_it_runs(make_fleet):
    fleet = make_fleet(jobs="wait")
    worker = fleet.worker()
    (run_id,) = fleet.request("wait")
    fleet.next_start()

    worker.send_signal(signal.SIGTERM)
    eventually(lambda: "Shutting down..." in fleet.logs())
    fleet.go_on(run_id)
    status = worker.wait(20)

    (finished,) = fleet.runs("wait")
    assert status == 0
    assert (finished.state, finished.attempt, finished.crashes, finished.failures) == ("succeeded", 1, 0, 0)
    assert fleet.registered("worker") == []


def test_what_does_not_finish_within_the_grace_is_handed_back_uncounted(make_fleet):
    fleet = make_fleet(jobs="wait")
    worker = fleet.worker("--worker-shutdown-timeout", "1000")
    (run_id,) = fleet.request("wait")
    fleet.next_start()

    status = fleet.terminate(worker)
    (handed_back,) = fleet.runs("wait")
    fleet.worker()
    second = fleet.next_start()
    fleet.go_on(run_id)

    assert status == 0
    assert (handed_back.state, handed_back.crashes, handed_back.failures) == ("retrying", 0, 0)
    assert (second.run_id, second.attempt) == (run_id, 2)
    eventually(lambda: fleet.runs("wait")[0].state == "succeeded")
    assert [effect.attempt for effect in fleet.effects("wait")] == [2]


def test_what_comes_while_a_worker_is_busy_starts_elsewhere_at_once(make_fleet, record_property):
    fleet = make_fleet(jobs="wait,touch")
    busy = fleet.worker(threads=1)
    (occupying,) = fleet.request("wait")
    fleet.next_start()
    (run_id,) = fleet.request("touch")
    asked_at = time.monotonic()
    fleet.worker()
    started_at = time.monotonic()
    eventually(lambda: fleet.effects("touch"))
    record_property("started_elsewhere_after_seconds", round(time.monotonic() - asked_at, 2))

    assert time.monotonic() - started_at < 3
    assert busy.poll() is None
    fleet.go_on(occupying)
    (run,) = fleet.runs("touch")
    assert (run.id, run.attempt, run.crashes) == (run_id, 1, 0)


ANY_SUCCESS = "SELECT 1 FROM rota_runs WHERE job = :job AND state = 'succeeded' LIMIT 1"


@pytest.mark.parametrize("job", ["touch", "nothing"])
def test_thousands_of_short_runs_survive_the_death_of_a_worker(make_fleet, job):
    """Runs that were claimed ahead are executed, and runs that were executed but not recorded are recorded. Each has
    one effect.
    """
    fleet = make_fleet(jobs="touch,nothing")
    killed = fleet.worker(processes=2)
    run_ids = fleet.request(job, count=12_000)
    eventually(lambda: fleet.rows(ANY_SUCCESS, job=job), every=0.01)

    fleet.kill(killed)
    left = sum(run.state != "succeeded" for run in fleet.runs(job))
    fleet.worker(processes=2)
    eventually(lambda: all(run.state == "succeeded" for run in fleet.runs(job)), every=0.5)

    assert left > 0, "it was killed too late to show anything"
    assert {run.crashes for run in fleet.runs(job)} <= {0, 1}
    if job == "touch":
        assert sorted(effect.run_id for effect in fleet.effects(job)) == sorted(run_ids)


def test_a_stopping_worker_leaves_what_it_has_not_begun_to_others_uncounted(make_fleet):
    fleet = make_fleet(jobs="touch")
    stopping = fleet.worker(threads=2)
    run_ids = fleet.request("touch", count=2000)
    eventually(lambda: len(fleet.effects("touch")) > 100)

    stopping.send_signal(signal.SIGTERM)
    assert stopping.wait(20) == 0
    left = sum(run.state != "succeeded" for run in fleet.runs("touch"))
    fleet.worker()
    eventually(lambda: all(run.state == "succeeded" for run in fleet.runs("touch")), every=0.5)

    assert left > 0, "it was stopped too late to show anything"
    assert {(run.attempt, run.crashes) for run in fleet.runs("touch")} == {(1, 0)}
    assert sorted(effect.run_id for effect in fleet.effects("touch")) == sorted(run_ids)
