"""A PostgreSQL that dies for good while its standby takes over: every run once, by itself, within seconds."""

import pytest

from core import database
from tests.crash.test_postgres_troubles import assert_all_end_once, succeeded
from tests.support.eventually import eventually
from tests.support.standby import Standby, either

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

RUNS = 300


@pytest.fixture
def standby(own_postgres, servers_folder, tmp_path):
    server = Standby(servers_folder / f"{tmp_path.name}-standby", own_postgres)
    yield server
    server.stop()


def test_work_goes_on_with_a_standby_that_is_promoted(make_fleet, own_postgres, standby, record_property):
    """DATABASE_URL names both hosts; no process is started anew."""
    fleet = make_fleet(jobs="nap,touch", postgres_url=own_postgres.url)
    standby.start()
    url = either(own_postgres, standby)
    workers = fleet.together(*[lambda: fleet.worker(threads=2, DATABASE_URL=url)] * 2)
    fleet.request("nap", RUNS)
    eventually(lambda: succeeded(fleet) > 20, within=20, every=0.01)

    own_postgres.kill()
    standby.promote()
    database.dispose(fleet.engine)
    fleet.engine = database.connect(standby.url)
    before, promoted_at = succeeded(fleet), fleet.now()
    assert 20 < before < RUNS

    eventually(lambda: succeeded(fleet) > before, within=30, every=0.01)
    record_property("seconds_after_promotion", (fleet.now() - promoted_at).total_seconds())
    assert_all_end_once(fleet, RUNS)
    assert [worker.poll() for worker in workers] == [None, None]
