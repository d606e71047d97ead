"""The statements of ``docs/processes.md``, apart from those that ``test_forks.py`` and ``test_leftovers.py`` check."""

import json
import time

import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.forks import Asking, install
from tests.support.supervised import supervised

pytestmark = pytest.mark.crash


@pytest.fixture
def fleet(make_fleet):
    """A fleet whose jobs use threads, processes and asyncio."""
    fleet = make_fleet(jobs="wait,touch")
    install(fleet.folder / "site", "concurrency")
    install(fleet.folder / "site", "forking")
    return fleet


@pytest.fixture
def worker(fleet):
    """Return the fleet's worker."""
    return fleet.worker(threads=2)


@pytest.fixture
def asking(fleet, worker):
    """Return a function that requests runs of that fleet."""
    return Asking(fleet)


def lines(fleet, text):
    """Return the lines of the log that contain a text."""
    return [json.loads(line) for line in fleet.logs().splitlines() if f'"event": "{text}"' in line]


class TestThreads:
    def test_a_pool_of_threads_computes(self, asking):
        assert asking.run("thread-pool").result == [3, 2, 1, 0]

    def test_lines_of_a_thread_say_which_run_they_are_of_if_it_has_the_jobs_context(self, fleet, asking):
        run = asking.run("log-in-threads")

        (within,) = eventually(lambda: lines(fleet, "within"))
        (without,) = lines(fleet, "without")
        assert within["run"] == run.id
        assert "run" not in without


class TestWaiting:
    def test_one_call_that_waits_is_not_interrupted_before_the_hard_limit(self, asking):
        assert "hard limit" in asking.run("join-child").error

    def test_a_wait_in_turns_is_interrupted_at_the_soft_limit(self, asking):
        assert "soft limit" in asking.run("join-child-in-turns").error


class TestProcesses:
    def test_pools_of_new_processes_compute_under_rota_worker_too(self, fleet):
        with supervised(fleet, processes=1):
            assert Asking(fleet).run("pool", method="spawn").result == [0, 1, 4, 9, 16, 25, 36, 49]

    def test_a_stopping_worker_ends_a_daemon_that_was_left_at_work(self, fleet, worker, asking):
        left = psutil.Process(asking.run("leave-process", seconds=60, daemon=True).result)

        assert fleet.terminate(worker) == 0
        assert not left.is_running()

    def test_a_stopping_worker_waits_for_a_process_that_is_none(self, fleet, worker, asking):
        left = psutil.Process(asking.run("leave-process", seconds=8, daemon=False).result)
        began = time.monotonic()

        assert fleet.terminate(worker) == 0
        assert not left.is_running()
        assert time.monotonic() - began > 4

    def test_a_program_has_no_socket_of_its_worker_and_ignores_sigint_alone(self, asking):
        assert asking.run("start-programs").result == [0, -15]


class TestAsyncio:
    def test_coroutines_run_and_their_lines_say_which_run_they_are_of(self, fleet, asking):
        run = asking.run("coroutines")

        assert run.result == [0, 1, 4, 9]
        eventually(lambda: [line["run"] for line in lines(fleet, "in a task")] == [run.id] * 4)

    def test_a_loop_that_goes_round_is_interrupted_at_the_soft_limit(self, asking):
        assert "soft limit" in asking.run("await-in-turns").error

    def test_a_loop_that_waits_for_what_does_not_come_is_not(self, asking):
        assert "hard limit" in asking.run("await-for-ever").error
