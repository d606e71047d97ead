"""``rota worker``: processes that die, are recycled or hang, one after another, while the others continue."""

import os
import signal
import time

import psutil
import pytest

from core.jobs.registry import Registry
from core.operations import health
from tests.support.emitted import logged
from tests.support.eventually import elapse, eventually
from tests.support.fleet import pid_of
from tests.support.supervised import supervised

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

SHORT_LEASE = {"ROTA_LEASE_SECONDS": "3", "ROTA_HEARTBEAT_SECONDS": "0.5"}
SOON_RECYCLED = {"ROTA_MAX_MESSAGES_PER_PROCESS": "30", "ROTA_MIN_PROCESS_SECONDS": "2"}


def states(fleet, job: str) -> set[str]:
    return {run.state for run in fleet.runs(job)}


class TestDeath:
    def test_one_process_that_is_killed_takes_no_other_with_it_and_is_replaced(self, make_fleet):
        fleet = make_fleet(jobs="wait")
        with supervised(fleet, processes=2, threads=2) as worker:
            run_ids = fleet.request("wait", 3)
            starts = fleet.next_starts(3)
            victim = starts[0].pid
            (bystander,) = {start.pid for start in starts} - {victim}
            own = [start.run_id for start in starts if start.pid == victim]

            os.kill(victim, signal.SIGKILL)
            again = fleet.next_starts(len(own))
            for run_id in run_ids:
                fleet.go_on(run_id)

            eventually(lambda: states(fleet, "wait") == {"succeeded"})
            assert sorted(start.run_id for start in again) == sorted(own)
            worker.wait_for(2)
            assert bystander in worker.pids()
            assert worker.terminate() == 0
        assert [run.crashes for run in fleet.runs("wait")] == [int(run_id in own) for run_id in run_ids]

    def test_killed_itself_it_leaves_no_worker_behind(self, make_fleet):
        fleet = make_fleet(jobs="touch")
        with supervised(fleet, processes=2) as worker:
            assert len(worker.processes()) > 4

            worker.process.kill()

            eventually(lambda: not worker.processes())


class TestStopping:
    def test_jobs_at_work_finish_within_the_grace(self, make_fleet):
        fleet = make_fleet(jobs="wait")
        with supervised(fleet, processes=2) as worker:
            (run_id,) = fleet.request("wait")
            fleet.next_start()

            worker.process.terminate()
            eventually(lambda: "worker.stopping" in fleet.logs())
            fleet.go_on(run_id)

            assert worker.process.wait(30) == 0
        (run,) = fleet.runs("wait")
        assert (run.state, run.attempt, run.crashes, run.failures) == ("succeeded", 1, 0, 0)

    def test_what_does_not_finish_is_handed_back_uncounted(self, make_fleet):
        fleet = make_fleet(jobs="wait")
        with supervised(fleet, "--grace", "4", processes=1) as worker:
            fleet.request("wait")
            fleet.next_start()

            assert worker.terminate() == 0
            assert len(list(logged(fleet.logs(), "worker.stopped"))) == 1
        (run,) = fleet.runs("wait")
        assert (run.state, run.crashes, run.failures) == ("retrying", 0, 0)
        assert fleet.registered("worker") == []

    def test_an_isolated_run_that_does_not_finish_is_handed_back_uncounted(self, make_fleet):
        fleet = make_fleet(jobs="wait")
        (run_id,) = fleet.request("wait")
        fleet.suspect(run_id)
        with supervised(fleet, "--grace", "4", processes=1) as worker:
            alone = fleet.next_start()
            assert alone.pid not in worker.pids()

            assert worker.terminate() == 0
            assert fleet.registered("isolated") == []
            told = [(line["job"], line["run"]) for line in logged(fleet.logs(), "run.isolated")]
            assert told == [("wait", run_id)]
        (run,) = fleet.runs("wait")
        assert (run.state, run.reason, run.crashes, run.failures) == ("retrying", "its worker was stopped", 2, 0)

    def test_isolated_runs_are_one_at_a_time_and_hold_no_thread_meanwhile(self, make_fleet):
        fleet = make_fleet(jobs="wait", environ={"ROTA_RESEND_SECONDS": "1"})
        suspects = fleet.request("wait", 4)
        for run_id in suspects:
            fleet.suspect(run_id)
        with supervised(fleet, processes=1, threads=4) as worker:
            for left in (3, 2, 1, 0):
                alone = fleet.next_start()
                if left:
                    eventually(lambda: "run.not_isolated_yet" in fleet.logs())
                assert [pid_of(row) for row in fleet.registered("isolated")] == [alone.pid]
                (free,) = fleet.request("wait")
                assert fleet.next_start().pid in worker.pids()
                fleet.go_on(free)
                fleet.go_on(alone.run_id)

            eventually(lambda: states(fleet, "wait") == {"succeeded"})
        assert [run.attempt for run in fleet.runs("wait")] == [1] * 8

    def test_an_isolated_run_finishes_within_the_grace(self, make_fleet):
        fleet = make_fleet(jobs="wait")
        (run_id,) = fleet.request("wait")
        fleet.suspect(run_id)
        with supervised(fleet, processes=1) as worker:
            fleet.next_start()

            worker.process.terminate()
            eventually(lambda: "worker.stopping" in fleet.logs())
            fleet.go_on(run_id)

            assert worker.process.wait(30) == 0
        (run,) = fleet.runs("wait")
        assert (run.state, run.attempt, run.crashes) == ("succeeded", 1, 2)

    def test_no_slot_is_late_over_two_deploys(self, make_fleet, record_property):
        """Old workers are told to stop, and new workers start, while a slot comes due every second."""
        fleet = make_fleet(jobs="tick")
        fleet.scheduler()
        old = fleet.start("rota", "worker", "--processes", "2", "--threads", "4")
        eventually(lambda: len(fleet.registered("worker")) == 2)
        eventually(lambda: fleet.effects("tick"))
        since = fleet.now()
        for _ in range(2):
            new = fleet.start("rota", "worker", "--processes", "2", "--threads", "4")
            eventually(lambda: len(fleet.registered("worker")) == 4)
            assert fleet.terminate(old) == 0
            old = new
        until = fleet.now()
        assert fleet.terminate(old) == 0

        slots = fleet.rows("SELECT * FROM rota_runs WHERE job = 'tick' AND slot BETWEEN :a AND :b", a=since, b=until)
        lateness = [(run.started_at - run.slot).total_seconds() for run in slots if run.started_at]
        record_property("slots", len(slots))
        record_property("worst_lateness_seconds", round(max(lateness), 2))
        assert len(lateness) == len(slots) >= int((until - since).total_seconds()) - 1
        assert max(lateness) < 2
        assert {run.crashes + run.failures for run in slots} == {0}


class TestRecycling:
    def test_a_process_is_replaced_before_it_leaves_and_finishes_what_it_has(self, make_fleet):
        fleet = make_fleet(jobs="wait,touch")
        with supervised(fleet, processes=1, threads=2, **SOON_RECYCLED) as worker:
            (old,) = worker.pids()
            (run_id,) = fleet.request("wait")
            fleet.next_start()
            fleet.request("touch", 60)

            eventually(lambda: "worker.replaced" in fleet.logs())
            young = eventually(lambda: set(worker.pids()) - {old})
            fleet.request("touch", 5)
            eventually(lambda: states(fleet, "touch") == {"succeeded"})
            assert psutil.pid_exists(old), "it still has a job"
            assert {run.worker.rpartition(":")[2] for run in fleet.runs("touch")[-5:]} == {str(*young)}
            fleet.go_on(run_id)

            eventually(lambda: old not in worker.pids())
            assert worker.terminate() == 0
        (run,) = fleet.runs("wait")
        assert (run.state, run.attempt, run.crashes) == ("succeeded", 1, 0)
        assert "supervisor.restarting" not in fleet.logs(), "that is for crashes"
        assert "process.lost" not in fleet.logs()

    def test_the_fast_lane_counts_for_recycling_and_loses_nothing(self, make_fleet):
        fleet = make_fleet(jobs="fast")
        with supervised(fleet, processes=2, threads=2, **SOON_RECYCLED) as worker:
            old = set(worker.pids())

            def are_replaced() -> bool:
                fleet.send_fast("fast")  # more and more messages, since one of the two processes may take most of them
                fleet.next_start()
                return not old & set(worker.pids()) and len(worker.pids()) == 2

            eventually(are_replaced)

            assert fleet.redis.llen("chaos:started") == 0, "none twice"
            assert worker.terminate() == 0
        assert fleet.logs().count("worker.replaced") >= 2

    def test_one_that_dies_after_it_was_replaced_is_told_and_its_run_recovered(self, make_fleet):
        fleet = make_fleet(jobs="wait,touch")
        with supervised(fleet, processes=1, threads=2, **SOON_RECYCLED) as worker:
            (old,) = worker.pids()
            (run_id,) = fleet.request("wait")
            fleet.next_start()
            fleet.request("touch", 60)
            eventually(lambda: "worker.replaced" in fleet.logs())

            os.kill(old, signal.SIGKILL)

            assert fleet.next_start().run_id == run_id
            fleet.go_on(run_id)
            eventually(lambda: states(fleet, "wait") == {"succeeded"})
            (left,) = eventually(lambda: list(logged(fleet.logs(), "worker.left")))
            assert (left["worker"], left["level"]) == ("worker-1", "warning")
            assert left["status"]

    def test_a_process_that_holds_too_much_memory_is_replaced(self, make_fleet):
        fleet = make_fleet(jobs="touch")
        with supervised(fleet, processes=1, ROTA_MAX_MEMORY_MB="20", ROTA_MIN_PROCESS_SECONDS="3") as worker:
            (old,) = worker.pids()

            eventually(lambda: old not in worker.pids() and worker.pids())

            assert {line["reason"] for line in logged(fleet.logs(), "process.recycling")} == {"memory"}

    def test_under_dramatiq_alone_its_only_process_is_restarted(self, make_fleet):
        fleet = make_fleet(jobs="touch")
        command = fleet.worker(threads=2, **SOON_RECYCLED)
        (old,) = fleet.registered("worker", command)
        fleet.request("touch", 60)

        eventually(lambda: [row for row in fleet.registered("worker", command) if row.id != old.id])
        fleet.request("touch", 5)
        eventually(lambda: states(fleet, "touch") == {"succeeded"})
        assert command.poll() is None
        assert "process.lost" not in fleet.logs()

    def test_under_dramatiq_with_several_processes_it_is_said_and_not_done(self, make_fleet):
        fleet = make_fleet(jobs="touch")
        command = fleet.worker(processes=2, threads=2, **SOON_RECYCLED)
        before = {row.id for row in fleet.registered("worker", command)}
        fleet.request("touch", 300)

        told = eventually(lambda: list(logged(fleet.logs(), "process.not_recycled")))
        assert told[0]["reason"].startswith("messages: ")

        assert {row.id for row in fleet.registered("worker", command)} == before


class TestLimits:
    def test_a_job_stuck_in_a_query_ends_within_2_s_of_its_soft_limit(self, make_fleet, record_property):
        fleet = make_fleet(jobs="query")
        with supervised(fleet, processes=1):
            fleet.request("query")
            fleet.next_start()
            eventually(lambda: states(fleet, "query") == {"dead"})

        (run,) = fleet.runs("query")
        seconds = (run.finished_at - run.started_at).total_seconds()
        record_property("seconds_after_the_limit", round(seconds - 1, 2))
        assert 1 <= seconds < 3
        assert run.error.startswith("TimeLimitExceeded: soft limit of 0:00:01 passed")
        assert fleet.effects("query") == []

    def test_a_hard_limit_is_recorded_and_ends_the_process_whose_other_runs_start_elsewhere_uncounted(self, make_fleet):
        fleet = make_fleet(jobs="stubborn,wait,fast-wait")
        with supervised(fleet, processes=2, threads=8) as worker:  # each process could work on all runs
            waiting = fleet.request("wait", 4)
            fleet.send_fast("fast-wait")
            fleet.send_fast("fast-wait")
            first = fleet.next_starts(6)
            fleet.request("stubborn")
            stubborn = fleet.next_start()
            beside = [start for start in first if start.pid == stubborn.pid]

            again = fleet.next_starts(len(beside))
            for start in again:
                fleet.go_on(start.run_id)
            for run_id in waiting:
                fleet.go_on(run_id)
            fleet.go_on(0)
            eventually(lambda: states(fleet, "wait") == {"succeeded"})

            eventually(lambda: not psutil.pid_exists(stubborn.pid))  # there may have been no other run in the process
            worker.wait_for(2)
        (dead,) = fleet.runs("stubborn")
        assert (dead.state, dead.crashes) == ("dead", 0)
        assert dead.error.startswith("TimeLimitExceeded: hard limit of 0:00:02 passed")
        assert sorted(start.job for start in again) == sorted(start.job for start in beside)
        assert {(run.crashes, run.failures) for run in fleet.runs("wait")} == {(0, 0)}
        assert len(fleet.effects("wait")) == 4

    def test_a_job_that_waits_in_a_log_handler_ends_with_its_process_at_the_hard_limit(self, make_fleet):
        fleet = make_fleet(jobs="stubborn-clog")
        with supervised(fleet, processes=1, threads=2) as worker:
            fleet.request("stubborn-clog")
            stubborn = fleet.next_start()

            eventually(lambda: states(fleet, "stubborn-clog") == {"dead"})
            eventually(lambda: not psutil.pid_exists(stubborn.pid))
            worker.wait_for(1)
        (told,) = logged(fleet.logs(), "run.hard_limit")
        assert told["job"] == "stubborn-clog"

    def test_an_isolated_run_whose_worker_ends_at_a_hard_limit_is_handed_back_uncounted(self, make_fleet):
        fleet = make_fleet(jobs="stubborn,wait")
        (run_id,) = fleet.request("wait")
        fleet.suspect(run_id)
        with supervised(fleet, processes=1, threads=4) as worker:
            first = fleet.next_start()
            fleet.request("stubborn")
            assert fleet.next_start().job == "stubborn"

            second = fleet.next_start(within=60)
            fleet.go_on(run_id)
            eventually(lambda: states(fleet, "wait") == {"succeeded"})

            assert not psutil.pid_exists(first.pid)
            assert second.pid not in worker.pids(), "it is suspected still"
        (run,) = fleet.runs("wait")
        assert (run.attempt, run.crashes, run.failures) == (2, 2, 0)
        assert [effect.pid for effect in fleet.effects("wait")] == [second.pid]

    def test_a_message_past_its_hard_limit_is_a_dead_letter_and_runs_beside_it_start_elsewhere_uncounted(
        self, make_fleet
    ):
        fleet = make_fleet(jobs="fast-stubborn,wait")
        with supervised(fleet, processes=1, threads=4) as worker:
            (waiting,) = fleet.request("wait")
            fleet.next_start()
            fleet.send_fast("fast-stubborn")
            stubborn = fleet.next_start()

            again = fleet.next_start(within=15)
            fleet.go_on(waiting)
            eventually(lambda: states(fleet, "wait") == {"succeeded"})
            worker.wait_for(1)

            assert (again.job, again.run_id) == ("wait", waiting)
            assert stubborn.pid not in worker.pids()
            assert fleet.redis.hlen("dramatiq:chaos-fast.XQ.msgs") == 1
            assert fleet.fetched("chaos-fast") == fleet.redis.llen("dramatiq:chaos-fast") == 0
            (told,) = logged(fleet.logs(), "message.hard_limit")
            assert (told["job"], told["limit_seconds"], told["level"]) == ("fast-stubborn", 2.0, "error")
        (run,) = fleet.runs("wait")
        assert (run.crashes, run.failures) == (0, 0)

    @pytest.mark.timeout(300)
    def test_a_job_that_lets_nothing_else_run_in_its_process_is_killed_with_it_and_dead_in_the_end(self, make_fleet):
        """No limit can be enforced in such a process. Its other runs are recovered, and survive even the third time."""
        fleet = make_fleet(jobs="hog,wait", environ=SHORT_LEASE)
        with supervised(fleet, processes=1, threads=4) as worker:
            (waiting,) = fleet.request("wait")
            fleet.next_start()
            (culprit,) = fleet.request("hog")
            (old,) = worker.pids()
            fleet.next_start()
            began = time.monotonic()

            eventually(lambda: not psutil.pid_exists(old))
            assert time.monotonic() - began < 20, "within its lease of 3 s, with room for a busy machine"
            eventually(lambda: states(fleet, "hog") == {"dead"}, within=150)
            fleet.go_on(waiting)
            eventually(lambda: states(fleet, "wait") == {"succeeded"})
            worker.wait_for(1)

        (dead,) = fleet.runs("hog")
        assert (dead.id, dead.reason, dead.crashes) == (culprit, "crashes", 3)
        assert "a job in it does not let others run" in fleet.logs()

    def test_without_a_supervisor_a_process_that_was_stopped_for_longer_than_its_lease_goes_on(self, make_fleet):
        fleet = make_fleet(jobs="touch", environ=SHORT_LEASE)
        command = fleet.worker()
        (old,) = fleet.registered("worker", command)
        psutil.Process(pid_of(old)).suspend()
        eventually(lambda: not fleet.registered("worker"))
        elapse(4)  # longer than the watchdog waits

        psutil.Process(pid_of(old)).resume()

        eventually(lambda: [pid_of(row) for row in fleet.registered("worker")] == [pid_of(old)])


class TestLife:
    """A living process reports to its supervisor. A process that does not report is replaced."""

    def test_a_process_that_was_stopped_is_replaced_and_its_run_starts_elsewhere(self, make_fleet):
        fleet = make_fleet(jobs="wait", environ=SHORT_LEASE)
        with supervised(fleet, processes=1, threads=2) as worker:
            (run_id,) = fleet.request("wait")
            stopped = fleet.next_start()

            os.kill(stopped.pid, signal.SIGSTOP)
            again = fleet.next_start(within=60)
            fleet.go_on(run_id)
            eventually(lambda: states(fleet, "wait") == {"succeeded"})

            assert not psutil.pid_exists(stopped.pid)
            assert worker.pids() == [again.pid]
            assert {line["worker"] for line in logged(fleet.logs(), "worker.silent")} == {"worker-1"}
        (run,) = fleet.runs("wait")
        assert (run.attempt, run.crashes) == (2, 1)

    def test_a_supervisor_that_was_stopped_itself_kills_nobody(self, make_fleet):
        fleet = make_fleet(jobs="touch", environ=SHORT_LEASE)
        with supervised(fleet, processes=2) as worker:
            before, family = worker.pids(), worker.processes()
            for process in family:
                process.suspend()
            elapse(10)  # longer than a process may be silent
            for process in sorted(
                family, key=lambda process: process.pid != worker.process.pid
            ):  # first the supervisor
                process.resume()

            worker.wait_for(2)
            fleet.request("touch")
            eventually(lambda: states(fleet, "touch") == {"succeeded"})
            # Each of them has registered once more, in whatever order they came to it.
            assert sorted(worker.pids()) == sorted(before)
            assert "worker.silent" not in fleet.logs()

    def test_a_process_whose_thread_stands_still_is_named_and_ends(self, make_fleet):
        fleet = make_fleet(jobs="clog,touch", environ={"ROTA_LEASE_SECONDS": "5", "ROTA_HEARTBEAT_SECONDS": "1"})
        with supervised(fleet, processes=1, threads=1) as worker:
            (old,) = worker.pids()
            fleet.request("clog")
            fleet.next_start()
            fleet.request("touch")

            (stuck,) = eventually(lambda: fleet.registered("stuck"))
            with (
                fleet.engine.connect() as connection
            ):  # in this process, since `rota check` may start too late to see the stuck process
                found = {check.name: check for check in health.processes(connection, Registry(), live=True, here=None)}
            assert found["stuck process"].outcome == "wrong"
            assert found["stuck process"].found.startswith(f"{stuck.name} makes no progress")
            eventually(lambda: not psutil.pid_exists(old))
            worker.wait_for(1)
            fleet.request("touch")
            eventually(lambda: len(fleet.runs("touch")) == 2 and states(fleet, "touch") == {"succeeded"})

        (named,), (ended,) = logged(fleet.logs(), "process.stuck"), logged(fleet.logs(), "process.stuck_ends")
        assert named["place"] == ended["place"]
        assert 0 < named["seconds"] < ended["seconds"]


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["--processes", "0"], "0 is not in the range 1<=x<=64"),
            (["-Q", "chaso"], "did you mean 'chaos'?"),
            (["--threads", "none"], "'none' is not a valid integer"),
        ],
    )
    def test_wrong_usage_is_told(self, make_fleet, words, told):
        fleet = make_fleet(jobs="touch")

        assert fleet.start("rota", "worker", *words).wait(30) == 2
        assert told in fleet.logs()

    def test_only_the_queues_that_are_asked_for_are_served(self, make_fleet):
        fleet = make_fleet(jobs="touch,fast")
        with supervised(fleet, "-Q", "chaos", processes=1) as worker:
            (row,) = worker.workers()
            assert row.queues == ["chaos"]
            fleet.request("touch")
            eventually(lambda: states(fleet, "touch") == {"succeeded"})
