"""``rota workers``: the live processes with their present runs, and the processes that have left, with the reason."""

import json

import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session

from core import database as databases
from core.cli import main
from core.ledger import processes, retention
from core.operations import workers
from core.plugins import loading
from tests.support.eventually import eventually


@pytest.fixture
def rota(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, words, catch_exceptions=False)


@pytest.fixture
def listed(database):
    """The answer now."""

    def listed():
        with database.connect() as connection:
            return workers.listed(connection, loading.current())

    return listed


@pytest.fixture
def reaper(database):
    """Yield the dispatcher's connection."""
    with databases.dedicated(database) as connection:
        yield connection


def reasons(found):
    return {left.id: left.reason for left in found.left}


class TestLive:
    """Live processes."""

    def test_a_process_is_listed_with_its_queues_its_threads_and_what_it_works_on(
        self, start_process, listed, ledger, database
    ):
        process = start_process(queues=["billing", "mail"], threads=8)
        start_process(kind="scheduler")
        lease = process.lease(database, ledger.request(key="42"))
        ledger.request()

        worker, scheduler = listed().live

        told = (worker.id, worker.kind, worker.name, worker.queues, worker.threads)
        assert told == (process.id, "worker", "test:1", ["billing", "mail"], 8)
        assert [(run.run, run.job, run.key, run.attempt) for run in worker.runs] == [(lease.run_id, "work", "42", 1)]
        assert (scheduler.kind, scheduler.threads, scheduler.runs) == ("scheduler", None, [])

    def test_the_threads_that_are_reserved_are_listed_by_queue(self, start_process, listed):
        start_process(queues=["billing", "mail"], threads=8, reserved={"billing": 2})
        start_process(queues=["mail"], threads=8)

        assert [process.reserved for process in listed().live] == [{"billing": 2}, {}]

    def test_a_run_that_has_ended_is_no_longer_at_work(self, start_process, listed, ledger, database):
        process = start_process()
        process.lease(database, ledger.request())
        ledger.do("UPDATE rota_runs SET state = 'succeeded', process_id = NULL, finished_at = now()")

        (worker,) = listed().live
        assert worker.runs == []


class TestLeft:
    """Processes that have left, and the reason."""

    def test_a_process_that_stops_has_stopped(self, process, listed):
        processes.resign(process.connection, process.id)

        found = listed()
        assert found.live == []
        assert reasons(found) == {process.id: "stopped"}

    def test_a_process_whose_connection_closed_has_died(self, start_process, listed, reaper):
        process = start_process(queues=["billing"])
        process.die()
        eventually(lambda: processes.end_dead(reaper), within=3, every=0.01)

        (left,) = listed().left
        assert (left.id, left.reason, left.name, left.queues) == (process.id, "died", "test:1", ["billing"])
        assert left.started_at <= left.left_at

    def test_a_silent_process_had_no_heartbeat(self, process, listed, reaper, database):
        process.expire(database)
        processes.end_dead(reaper)

        assert reasons(listed()) == {process.id: "no heartbeat"}

    def test_one_that_is_ended_as_dead_and_resigns_afterwards_has_left_once(self, process, listed, reaper, database):
        process.expire(database)
        processes.end_dead(reaper)
        with databases.autocommit(database) as connection:
            processes.resign(connection, process.id)

        assert reasons(listed()) == {process.id: "no heartbeat"}

    def test_only_those_of_the_last_day_are_listed_the_last_first(self, start_process, listed, ledger):
        first, second, old = (start_process() for _ in range(3))
        for each in (first, second, old):
            processes.resign(each.connection, each.id)
        ledger.do("UPDATE rota_departures SET left_at = now() - interval '25 hours' WHERE process_id = :id", id=old.id)

        assert [left.id for left in listed().left] == [second.id, first.id]

    def test_retention_removes_old_ones(self, start_process, ledger, database):
        for each in (old := start_process(), young := start_process()):
            processes.resign(each.connection, each.id)
        ledger.do("UPDATE rota_departures SET left_at = now() - interval '1 year' WHERE process_id = :id", id=old.id)
        with Session(database) as session, session.begin():
            retention.prune_departures(session)

        assert ledger.value("SELECT process_id FROM rota_departures") == young.id


class TestCommand:
    """The output for people and for programs."""

    def test_without_a_process_it_says_so(self, rota):
        assert rota("workers").stdout == "no process is alive\n"

    def test_it_prints_who_is_alive_what_they_work_on_and_who_has_left(self, rota, start_process, ledger, database):
        process, gone = start_process(queues=["billing"], threads=8), start_process()
        lease = process.lease(database, ledger.request(progress='{"done": 7}'))
        processes.resign(gone.connection, gone.id)

        lines = [line.split("\t") for line in rota("workers").stdout.split("\n")]

        assert lines[1][:4] == [str(process.id), "worker", "test:1", "1 of 8"]
        assert lines[3] == ["at work:"]
        assert [lines[5][at] for at in (0, 1, 2, 6)] == [str(process.id), str(lease.run_id), "work", "done 7"]
        assert lines[7] == ["left in the last 24 hours:"]
        assert [lines[9][at] for at in (0, 2, 4)] == [str(gone.id), "test:1", "stopped"]

    def test_it_prints_the_reserved_threads_beside_their_queue(self, rota, start_process):
        start_process(queues=["billing", "mail"], threads=8, reserved={"billing": 2})

        (_, line, *_) = rota("workers").stdout.split("\n")

        assert line.split("\t")[-1] == "billing (2 reserved), mail"

    def test_programs_get_the_same_as_json(self, rota, start_process, ledger, database):
        process = start_process(queues=["billing"], threads=2, reserved={"billing": 1})
        process.lease(database, ledger.request())

        found = json.loads(rota("workers", "--json").stdout)

        assert found["left"] == []
        (live,) = found["live"]
        assert (live["id"], [run["job"] for run in live["runs"]]) == (process.id, ["work"])
        assert live["reserved"] == {"billing": 1}
