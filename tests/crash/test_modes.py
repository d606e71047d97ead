"""``SCHEDULER_MODE``: how runs reach workers with Redis, without Redis, and while Redis is away."""

import pytest

from tests.support.emitted import logged
from tests.support.eventually import elapse, eventually
from tests.support.supervised import supervised

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

RUNS = 600
LATENESS = """
    SELECT max(extract(epoch FROM at - slot)) AS worst, count(*) AS slots FROM effects
    WHERE job = 'tick' AND slot > :since
"""


def succeeded(fleet, job: str = "nap") -> int:
    return fleet.rows("SELECT count(*) AS runs FROM rota_runs WHERE job = :job AND state = 'succeeded'", job=job)[
        0
    ].runs


def assert_each_ended_once(fleet, runs: int, job: str = "nap") -> None:
    eventually(lambda: succeeded(fleet, job) == runs)
    effects = [effect.run_id for effect in fleet.effects(job)]
    assert len(effects) == len(set(effects)) == runs


class TestAuto:
    def test_runs_go_on_within_5_s_of_the_loss_of_redis_and_through_it_again_afterwards(
        self, make_fleet, own_redis, record_property
    ):
        """This includes runs whose messages were lost with Redis, and runs that were requested later. No process is
        restarted, and each run is executed once.
        """
        fleet = make_fleet(jobs="nap,touch", redis_url=own_redis.url)
        first, _ = fleet.together(*[lambda: fleet.worker(threads=4)] * 2)
        fleet.request("nap", RUNS)
        eventually(lambda: len(fleet.effects("nap")) > 50, every=0.01)

        own_redis.kill()
        lost_at = fleet.now()
        requested = fleet.request("touch")
        (effect,) = eventually(lambda: fleet.effects("touch"))
        gap = (effect.at - lost_at).total_seconds()
        assert_each_ended_once(fleet, RUNS)

        own_redis.start()
        eventually(lambda: fleet.logs().count("redis.back") == 2)
        requested += fleet.request("touch", 100)
        assert_each_ended_once(fleet, 101, "touch")

        record_property("gap_seconds", round(gap, 2))
        assert gap < 5
        assert first.poll() is None
        assert fleet.logs().count("redis.away") == 2, "each worker says so once"
        eventually(lambda: fleet.redis.llen("dramatiq:chaos") + fleet.fetched("chaos") == 0)

    def test_a_redis_that_is_full_is_gone_round(self, make_fleet, own_redis):
        fleet = make_fleet(jobs="touch", redis_url=own_redis.url)
        fleet.worker()
        fleet.redis.config_set("maxmemory", "1")

        eventually(lambda: "redis.away" in fleet.logs())
        fleet.request("touch", 10)
        assert_each_ended_once(fleet, 10, "touch")
        fleet.redis.config_set("maxmemory", "0")
        eventually(lambda: "redis.back" in fleet.logs())

    def test_a_worker_that_starts_without_redis_works(self, make_fleet):
        fleet = make_fleet(jobs="touch", redis_url="redis://127.0.0.1:1")
        worker = fleet.worker()
        fleet.request("touch", 20)

        assert_each_ended_once(fleet, 20, "touch")
        assert fleet.terminate(worker) == 0

    def test_workers_without_redis_share_the_work_and_take_no_more_than_they_can_do(self, make_fleet):
        fleet = make_fleet(jobs="nap", redis_url="redis://127.0.0.1:1")
        fleet.together(*[lambda: fleet.worker(threads=2)] * 2)
        fleet.request("nap", 200)
        assert_each_ended_once(fleet, 200)

        workers = {run.worker for run in fleet.runs("nap")}
        assert len(workers) == 2
        assert {run.attempt for run in fleet.runs("nap")} == {1}


class TestDistributed:
    def test_nothing_goes_round_a_redis_that_is_away(self, make_fleet, own_redis):
        fleet = make_fleet(jobs="touch", redis_url=own_redis.url, environ={"SCHEDULER_MODE": "distributed"})
        fleet.worker()
        fleet.request("touch")
        assert_each_ended_once(fleet, 1, "touch")

        own_redis.stop()
        fleet.request("touch", 10)
        elapse(8)

        assert succeeded(fleet, "touch") == 1
        own_redis.start()
        assert_each_ended_once(fleet, 11, "touch")


#: An empty variable counts as unset.
LOCAL = {"SCHEDULER_MODE": "local", "REDIS_URL": ""}
FAILING = """
    INSERT INTO rota_runs (job, queue, exclusive, args) VALUES ('send-fast', 'chaos', false, '{"fail": true}')
"""


class TestLocal:
    def test_a_job_that_closes_standard_error_ends_nothing(self, make_fleet):
        fleet = make_fleet(jobs="close-stderr,touch", environ=LOCAL)
        with supervised(fleet, processes=1) as worker:
            before = worker.pids()
            fleet.request("close-stderr")
            eventually(lambda: succeeded(fleet, "close-stderr") == 1)
            fleet.request("touch", 20)

            assert_each_ended_once(fleet, 20, "touch")
            assert worker.pids() == before
            eventually(lambda: fleet.logs().count("job=touch") + fleet.logs().count('"job": "touch"') >= 20)

    def test_one_process_does_everything_without_redis(self, make_fleet):
        fleet = make_fleet(jobs="tick,nap,half-minute", environ=LOCAL)
        with supervised(fleet) as worker:
            fleet.request("nap", 200)
            assert_each_ended_once(fleet, 200)

            assert len(worker.pids()) == 1
            assert worker.terminate() == 0
        assert fleet.registered("worker") == []
        assert "Traceback" not in fleet.logs()

    def test_the_fast_lane_is_in_memory_with_its_retries_and_is_finished_before_the_end(self, make_fleet):
        fleet = make_fleet(jobs="send-fast,fast", environ={"SCHEDULER_MODE": "local"})
        with supervised(fleet, threads=1) as worker:
            fleet.request("send-fast", 5)
            assert {start.job for start in fleet.next_starts(5)} == {"fast"}
            with fleet.engine.begin() as connection:
                connection.exec_driver_sql(FAILING)
            fleet.next_start()

            assert worker.terminate() == 0

        assert len(fleet.next_starts(2)) == 2, "both retries, a second apart, though it was told to stop"
        assert {line["job"] for line in logged(fleet.logs(), "message.dead")} == {"fast"}

    @pytest.mark.parametrize("command", ["dramatiq", "periodiq"])
    def test_dramatiq_and_periodiq_refuse_and_say_what_to_run(self, make_fleet, command):
        fleet = make_fleet(jobs="touch", environ=LOCAL)

        process = fleet.start(command, "core.main")

        assert process.wait(30) != 0
        assert "SCHEDULER_MODE=local runs everything in one process" in fleet.logs()
        assert "run `rota worker`" in fleet.logs()
        assert "Traceback" not in fleet.logs()

    def test_several_processes_are_refused(self, make_fleet):
        fleet = make_fleet(jobs="touch", environ=LOCAL)

        assert fleet.start("rota", "worker", "--processes", "2").wait(30) == 2
        assert "SCHEDULER_MODE=local runs one process" in fleet.logs()


@pytest.mark.parametrize("mode", ["distributed", "auto", "auto without Redis", "local"])
def test_without_a_scheduler_slots_start_within_2_s_in_every_mode(make_fleet, own_redis, mode, record_property):
    fleet = make_fleet(jobs="tick", redis_url=own_redis.url, environ={"SCHEDULER_MODE": mode.split()[0]})
    with supervised(fleet, processes=1):
        if mode == "auto without Redis":
            own_redis.kill()
            eventually(lambda: "redis.away" in fleet.logs())
        eventually(lambda: fleet.effects("tick"))
        since = fleet.now()
        elapse(10)
        (found,) = fleet.rows(LATENESS, since=since)

    record_property("worst_lateness_seconds", round(float(found.worst), 2))
    assert found.slots >= 7
    assert found.worst < 2
