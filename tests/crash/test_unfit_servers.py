"""Every command that works on jobs refuses servers that it can never use, in real processes, and says what to do."""

import pytest

from core.transport.redis.ownership import KEY
from tests.support.eventually import eventually
from tests.support.other_databases import encoded

pytestmark = [pytest.mark.crash, pytest.mark.timeout(200)]

#: periodiq may wait until the next minute before it asks for the first schedule.
LONGEST = 100
WORKER = ("dramatiq", "core.main", "--processes", "1", "--threads", "2")
SCHEDULER = ("periodiq", "core.main")
SUPERVISOR = ("rota", "worker", "--processes", "1")
COMMANDS = pytest.mark.parametrize("command", [WORKER, SCHEDULER, SUPERVISOR], ids=lambda words: words[0])


def refusal(fleet, command, **environ):
    """Return the message of a command that exits with status 1."""
    assert fleet.start(*command, **environ).wait(LONGEST) == 1
    assert "Traceback" not in fleet.logs()
    return fleet.logs()


@COMMANDS
def test_the_redis_of_another_ledger_is_refused(make_fleet, command):
    fleet = make_fleet(jobs="tick")
    fleet.redis.set(KEY, "1/2/another")

    said = refusal(fleet, command)

    assert "Redis carries the messages of the ledger 1/2/another" in said
    assert "give each service a Redis of its own" in said
    assert fleet.rows("SELECT 1 FROM rota_processes") == []


@COMMANDS
def test_a_database_of_another_encoding_is_refused(make_fleet, command):
    fleet = make_fleet(jobs="tick")
    with encoded(fleet.engine, "LATIN1") as url:
        said = refusal(fleet, command, DATABASE_URL=url)

    assert "the database has the encoding LATIN1; it must be UTF8: make another database" in said


def test_local_mode_refuses_it_as_well_and_needs_no_redis(make_fleet):
    fleet = make_fleet(jobs="tick", environ={"SCHEDULER_MODE": "local", "REDIS_URL": ""})
    with encoded(fleet.engine, "SQL_ASCII") as url:
        assert "encoding SQL_ASCII" in refusal(fleet, ("rota", "worker"), DATABASE_URL=url)


def test_a_redis_that_turns_out_to_be_anothers_ends_a_worker_that_started_without_it(make_fleet, own_redis):
    fleet = make_fleet(jobs="tick", redis_url=own_redis.url)
    fleet.redis.set(KEY, "1/2/another")
    own_redis.stop()
    worker = fleet.worker()

    own_redis.start()

    eventually(lambda: worker.poll() is not None, within=LONGEST)
    assert "process.unfit" in fleet.logs()
    assert "give each service a Redis of its own" in fleet.logs()
