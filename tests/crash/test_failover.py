"""A PostgreSQL that dies for good while its standby takes over: every run once, by itself, within seconds."""

import pytest

from core import database
from tests.crash.test_postgres_troubles import assert_all_end_once, succeeded
from tests.support.eventually import elapse, eventually
from tests.support.fleet import is_of_group
from tests.support.standby import Standby, either

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

RUNS = 300


@pytest.fixture
def standby(own_postgres, servers_folder, tmp_path):
    server = Standby(servers_folder / f"{tmp_path.name}-standby", own_postgres)
    yield server
    server.stop()


def test_work_goes_on_with_a_standby_that_is_promoted(make_fleet, own_postgres, standby, record_property):
    """DATABASE_URL names both hosts; no process is restarted."""
    fleet = make_fleet(jobs="nap,touch", postgres_url=own_postgres.url)
    standby.start()
    url = either(own_postgres, standby)
    workers = fleet.together(*[lambda: fleet.worker(threads=2, DATABASE_URL=url)] * 2)
    fleet.request("nap", RUNS)
    eventually(lambda: succeeded(fleet) > 20, every=0.01)

    own_postgres.kill()
    standby.promote()
    database.dispose(fleet.engine)
    fleet.engine = database.connect(standby.url)
    before, promoted_at = succeeded(fleet), fleet.now()
    assert 20 < before < RUNS

    eventually(lambda: succeeded(fleet) > before, every=0.01)
    record_property("seconds_after_promotion", (fleet.now() - promoted_at).total_seconds())
    assert_all_end_once(fleet, RUNS)
    assert [worker.poll() for worker in workers] == [None, None]


def running(engine):
    """Return how many runs are running according to a standby."""
    with engine.connect() as connection:
        return connection.exec_driver_sql("SELECT count(*) FROM rota_runs WHERE state = 'running'").scalar_one()


def test_long_runs_are_no_crashes_of_the_workers_that_come_back(make_fleet, own_postgres, standby):
    """PostgreSQL is away for longer than a lease. One worker comes back later than the leader, and another worker
    never.
    """
    fleet = make_fleet(jobs="wait", postgres_url=own_postgres.url)
    standby.start()
    environ = {
        "DATABASE_URL": either(own_postgres, standby),
        "ROTA_LEASE_SECONDS": "3",
        "ROTA_HEARTBEAT_SECONDS": "0.5",
    }
    workers = fleet.together(*[lambda: fleet.worker(threads=2, **environ)] * 3)
    run_ids = fleet.request("wait", 6)
    started = fleet.next_starts(6)
    prompt, late, dead = workers
    lost = {start.run_id for start in started if fleet.group_of(start.pid) is dead}
    assert 0 < len(lost) < 6
    replayed = database.connect(standby.url)
    eventually(lambda: running(replayed) == 6)  # a claim is flushed, and then sent, a moment later
    database.dispose(replayed)

    fleet.pause(late)
    own_postgres.kill()
    fleet.kill(dead)
    elapse(5)
    standby.promote()
    database.dispose(fleet.engine)
    fleet.engine = database.connect(standby.url)
    eventually(lambda: fleet.registered("worker", prompt))
    assert is_of_group(fleet.leader(), prompt.pid)
    elapse(3)
    fleet.wake(late)

    for run_id in run_ids:
        fleet.go_on(run_id)
    eventually(lambda: {run.state for run in fleet.runs("wait")} == {"succeeded"})
    assert {run.id: run.crashes for run in fleet.runs("wait")} == {run_id: run_id in lost for run_id in run_ids}
    assert sorted(effect.run_id for effect in fleet.effects("wait")) == run_ids
    assert [prompt.poll(), late.poll()] == [None, None]
