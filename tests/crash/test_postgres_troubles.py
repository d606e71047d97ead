"""I4, I5: a PostgreSQL that refuses writes, has no free connections, or cuts connections. No run starts that cannot be
claimed, no run ends twice, and afterwards everything continues by itself.
"""

from contextlib import ExitStack, suppress

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from core.database import normalise_url
from tests.support.eventually import elapse, eventually

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

RUNS = 300
CUT_ALL = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'rota:%'
"""


def succeeded(fleet) -> int:
    return fleet.rows("SELECT count(*) AS runs FROM rota_runs WHERE job = 'nap' AND state = 'succeeded'")[0].runs


def assert_all_end_once(fleet, runs: int = RUNS) -> None:
    eventually(lambda: succeeded(fleet) == runs, within=90)
    effects = [effect.run_id for effect in fleet.effects("nap")]
    assert len(effects) == len(set(effects)) == runs
    assert {run.crashes for run in fleet.runs("nap")} == {0}


def make_read_only(connection, *, is_on: bool) -> None:
    connection.exec_driver_sql("SET default_transaction_read_only = off")
    connection.exec_driver_sql(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if is_on else 'off'}")
    connection.exec_driver_sql("SELECT pg_reload_conf()")


def test_while_it_is_read_only_nothing_runs_and_then_all_goes_on(make_fleet, own_postgres):
    fleet = make_fleet(jobs="nap", postgres_url=own_postgres.url)
    fleet.worker(threads=4)
    fleet.request("nap", RUNS)
    eventually(lambda: succeeded(fleet) > 20, every=0.01)
    operator = create_engine(normalise_url(own_postgres.url), isolation_level="AUTOCOMMIT")
    with operator.connect() as connection:
        make_read_only(connection, is_on=True)
        elapse(1)
        before = connection.execute(text("SELECT count(*) FROM effects")).scalar_one()
        elapse(5)
        after = connection.execute(text("SELECT count(*) FROM effects")).scalar_one()
        make_read_only(connection, is_on=False)
    operator.dispose()

    assert before == after < RUNS
    assert_all_end_once(fleet)


def test_when_it_has_no_connection_to_give_all_goes_on_afterwards(make_fleet, own_postgres):
    fleet = make_fleet(jobs="nap,touch", postgres_url=own_postgres.url)
    fleet.worker(threads=4)
    greedy = create_engine(normalise_url(own_postgres.url), pool_size=200)
    fleet.engine.dispose()
    with ExitStack() as stack:
        with suppress(OperationalError):
            while True:
                stack.enter_context(greedy.connect())
        late = fleet.start("dramatiq", "core.main", "--processes", "1", "--threads", "4")
        eventually(lambda: "process.not_registered" in fleet.logs())
        elapse(3)
        assert "too many clients" in fleet.logs()
    greedy.dispose()

    eventually(lambda: fleet.registered("worker", late))
    fleet.request("nap", RUNS)
    assert_all_end_once(fleet)


def test_a_pool_that_is_too_small_makes_runs_wait_for_one_another_and_no_more(make_fleet):
    fleet = make_fleet(jobs="nap")
    fleet.worker(threads=8, ROTA_DB_POOL_SIZE="2")

    fleet.request("nap", RUNS)

    assert_all_end_once(fleet)
    assert {run.failures for run in fleet.runs("nap")} == {0}


def test_connections_that_are_cut_again_and_again_are_no_crashes(make_fleet, postgres_url):
    """This includes the connections of heartbeats and of the dispatcher. Interrupted runs are tried again."""
    fleet = make_fleet(jobs="nap", environ={"ROTA_MAX_CRASHES": "100"})
    fleet.together(*[lambda: fleet.worker(threads=2)] * 2)
    fleet.request("nap", 2 * RUNS)
    for _ in range(5):
        assert fleet.rows(CUT_ALL)[0].count > 0
        elapse(0.7)

    assert_all_end_once(fleet, 2 * RUNS)
