"""Jobs that fork: a child is not a worker. It does not change the ledger, and does not keep connections of a dead
parent open.
"""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.fleet import pid_of
from tests.support.forks import Asking, install
from tests.support.supervised import supervised

pytestmark = pytest.mark.crash

#: In seconds. The recovery of a run whose process was killed; a lease would take 15 s.
RECOVERED_SECONDS = 3


@pytest.fixture
def fleet(make_fleet):
    """A fleet with jobs that fork."""
    fleet = make_fleet(jobs="wait,touch")
    install(fleet.folder / "site")
    return fleet


@pytest.fixture
def asking(fleet):
    """Return a function that requests runs of that fleet."""
    return Asking(fleet)


@pytest.fixture
def worker(fleet):
    """Return the fleet's worker."""
    return fleet.worker(threads=4)


def sockets_of(pid):
    """Return the sockets of a process."""
    links = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
    return {link for link in links if link.startswith("socket:")}


class TestEnd:
    """A child that leaves the job's function ends there. The run belongs to the parent."""

    @pytest.mark.parametrize(("how", "status"), [("returns", 0), ("exits", 3), ("raises", 1)])
    def test_a_child_that_leaves_the_function_ends_and_the_run_is_its_parents(self, fleet, worker, asking, how, status):
        run = asking.run("fork", how=how)

        assert (run.state, run.attempt, run.result) == ("succeeded", 1, {"status": status})
        assert len(fleet.effects("fork")) == 1
        assert ("process.child_ended" in fleet.logs()) == (how == "raises")

    def test_on_the_fast_lane_it_acknowledges_nothing_and_works_on_nothing(self, fleet, worker):
        (row,) = fleet.registered("worker", worker)
        process = psutil.Process(pid_of(row))
        before = process.children()

        fleet.send_fast("fast-fork")
        fleet.next_start()
        eventually(lambda: fleet.fetched("chaos-fast") == 0)

        assert process.children() == before
        assert fleet.redis.llen("chaos:started") == 0, "once"

    def test_an_isolated_run_may_fork_and_its_child_be_ended(self, fleet, worker, asking):
        run_id = asking.ask("end-children")
        fleet.suspect(run_id)

        assert asking.end_of(run_id).result == [-15, 1, -1]


class TestFiles:
    """A child has no connection of its worker."""

    def test_a_child_left_behind_does_not_keep_a_killed_worker_alive(self, fleet, worker, asking, record_property):
        left = asking.run("leave-child").result
        (run_id,) = fleet.request("wait")
        fleet.next_start()
        fleet.worker(threads=2)
        began = time.monotonic()

        for process in psutil.Process(worker.pid).children(recursive=True):
            if process.pid != left:
                process.kill()
        fleet.next_start(within=30)
        seconds = time.monotonic() - began
        record_property("seconds_until_recovered", round(seconds, 2))

        assert psutil.pid_exists(left), "it lives, and holds nothing"
        os.kill(left, signal.SIGKILL)
        fleet.go_on(run_id)
        assert asking.end_of(run_id).crashes == 1
        assert seconds < RECOVERED_SECONDS

    def test_a_child_holds_no_socket_of_its_worker(self, fleet, asking):
        with supervised(fleet, processes=1) as worker:
            left = asking.run("leave-child").result
            (pid,) = worker.pids()

            assert len(sockets_of(pid)) > 5, "of PostgreSQL, of Redis, and of its supervisor"
            assert not sockets_of(pid) & sockets_of(left)
            os.kill(left, signal.SIGKILL)

    def test_a_child_left_behind_does_not_keep_an_isolated_run_alive_whose_worker_was_killed(
        self, fleet, worker, asking
    ):
        (run_id,) = fleet.request("wait")
        fleet.suspect(run_id)
        isolated = psutil.Process(fleet.next_start().pid)
        left = asking.run("leave-child").result
        (row,) = fleet.registered("worker", worker)

        os.kill(pid_of(row), signal.SIGKILL)

        eventually(lambda: not isolated.is_running())
        os.kill(left, signal.SIGKILL)

    def test_a_child_that_uses_the_runs_session_is_refused_and_its_parent_goes_on(self, worker, asking):
        run = asking.run("use-session")

        assert run.state == "succeeded", run.error
        statement, commit, session, _close = run.result  # a session that is gone may be closed, or raise an error
        assert {statement, commit} <= {"DatabaseError", "OperationalError"}
        assert session == "ForkedChild"

    def test_a_child_may_have_a_connection_of_its_own(self, fleet, worker, asking):
        run = asking.run("own-connection")

        assert (run.state, run.result) == ("succeeded", 0)
        assert len(fleet.effects("own-connection")) == 1

    def test_a_child_that_uses_the_engine_is_given_a_connection_of_its_own(self, worker, asking):
        assert asking.run("own-engine").result == 7


class TestMultiprocessing:
    """Pools, executors and programs work, even while other threads of the process hold locks."""

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_pools_of_each_kind_compute(self, worker, asking, method):
        assert asking.run("pool", method=method).result == [0, 1, 4, 9, 16, 25, 36, 49]

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_executors_of_each_kind_compute(self, worker, asking, method):
        assert asking.run("executor", method=method).result == [0, 1, 4, 9, 16, 25, 36, 49]

    def test_children_end_by_signals_as_any_process(self, worker, asking):
        assert asking.run("end-children").result == [-15, 1, -1]

    def test_programs_run_and_can_be_ended(self, worker, asking):
        assert asking.run("program").result == [3, -15]

    def test_many_children_beside_threads_that_log_and_ask_do_not_hang(self, fleet, asking):
        fleet.worker(threads=8)
        pools = []
        for _ in range(10):
            fleet.request("log-much", 2)
            pools += [asking.ask("pool"), asking.ask("executor", method="fork")]

        results = [asking.end_of(run_id, within=120).result for run_id in pools]

        assert results == [[0, 1, 4, 9, 16, 25, 36, 49]] * 20
        eventually(lambda: {run.state for run in fleet.runs("log-much")} == {"succeeded"})
        assert fleet.logs().count("squares 7") == 20, "children's lines are written"
