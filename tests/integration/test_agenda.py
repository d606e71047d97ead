"""The statement with which each pass of the dispatcher begins: it reports all work, and without work the pass ends."""

from datetime import timedelta

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from core import database as databases
from core import every, job
from core.dispatcher.accounting import Accountant
from core.dispatcher.loop import Dispatcher
from core.ledger import agenda, pauses, processes, slots
from core.ledger.prepared import Prepared
from core.scheduling.misfires import HEAD_START
from tests.support.emitted import emitted
from tests.support.eventually import eventually

SECONDS = {"tolerance_seconds": 30, "overdue_seconds": 5}


@job("work", schedule=every(days=365))
def work(run):
    pass


@pytest.fixture
def connection(database):
    """The dispatcher's connection."""
    with databases.dedicated(database) as connection:
        yield connection


@pytest.fixture
def ask(connection):
    return lambda: agenda.ask(connection, **SECONDS)


@pytest.fixture
def registry(use_jobs):
    return use_jobs(work)


@pytest.fixture
def dispatcher(database, registry, carrier):
    carrier.maintain = lambda queues: None
    carrier.queues_with_messages = set
    made = Dispatcher(
        database, registry, carrier, every_seconds=1, resend_seconds=5, max_crashes=3, orphan_seconds=60
    )  # fmt: skip
    yield made
    made.stop()


@pytest.fixture
def accountant(registry, connection):
    return Accountant(registry, slots.watermarks(connection))


class TestAgenda:
    def test_an_empty_ledger_has_nothing(self, ask):
        assert not ask().has_work
        assert not ask().is_paused

    @pytest.mark.parametrize(
        "row",
        [
            {"due_at": "now"},
            {"due_at": "now", "state": "retrying"},
            {"sent_at": "2020-01-01"},
            {"slot": "2020-01-01", "sent_at": "now"},
        ],
        ids=["due", "retry", "lost on its way", "late"],
    )
    def test_a_run_that_something_is_to_be_done_about_is_work(self, ask, ledger, row):
        ledger.request("work", **row)

        assert ask().has_work

    @pytest.mark.parametrize(
        "row",
        [
            {"due_at": "2099-01-01"},
            {"sent_at": "now"},
            {"slot": "now", "sent_at": "now"},
            {"state": "succeeded", "finished_at": "now"},
            {"state": "dead", "finished_at": "now"},
        ],
        ids=["early", "on its way", "in time", "succeeded", "dead"],
    )
    def test_any_other_is_none(self, ask, ledger, row):
        ledger.request("work", **row)

        assert not ask().has_work

    def test_a_pause_is_told_until_it_ends(self, ask, database):
        with database.begin() as connection:
            pauses.begin(connection, "everything", by="ann", reason=None, until=None)
        assert ask().is_paused

        with database.begin() as connection:
            pauses.end(connection, "everything")
        assert not ask().is_paused


class TestAnyGone:
    """The check for dead processes, which recovery makes on its own connection."""

    @pytest.fixture
    def is_any_gone(self, connection):
        return lambda: processes.is_any_gone(connection)

    def test_an_empty_ledger_has_nothing(self, is_any_gone):
        assert not is_any_gone()

    def test_a_run_whose_process_is_gone_is_work(self, is_any_gone, ledger):
        ledger.request("work", state="running", process_id=1, token=1)

        assert is_any_gone()

    def test_a_process_that_died_is_work_and_one_that_lives_is_none(self, is_any_gone, start_process):
        process = start_process()
        assert not is_any_gone()

        process.die()

        assert eventually(is_any_gone, within=3)

    def test_a_silent_process_is_work(self, is_any_gone, start_process, database):
        start_process().expire(database)

        assert is_any_gone()


class TestPass:
    @pytest.fixture
    def asked(self, monkeypatch):
        """Return the statements that are sent to PostgreSQL from now on."""
        asked: list[str] = []
        rows, execute = Prepared.rows, Connection.execute

        def note_rows(self, *arguments):
            asked.append(self.name)
            return rows(self, *arguments)

        def note_statement(self, statement, *arguments, **options):
            asked.append(str(statement))
            return execute(self, statement, *arguments, **options)

        monkeypatch.setattr(Prepared, "rows", note_rows)
        monkeypatch.setattr(Connection, "execute", note_statement)
        return asked

    def test_an_idle_one_is_one_statement(self, dispatcher, accountant, connection, asked):
        dispatcher.pass_once(connection, accountant)  # also looks for gone jobs, and accounts for slots
        asked.clear()

        dispatcher.pass_once(connection, accountant)

        assert asked == ["rota_agenda"]

    def test_a_schedule_is_looked_at_when_its_next_slot_is_due_and_not_before(self, dispatcher, accountant, connection):
        dispatcher.pass_once(connection, accountant)
        due = accountant.next_at + HEAD_START

        assert accountant.next_at == work.schedule.next_after(due - timedelta(days=365))
        assert accountant.is_due(due)
        assert not accountant.is_due(due - timedelta.resolution)

    def test_a_step_that_fails_leaves_the_others_their_turn(
        self, dispatcher, accountant, connection, ledger, carrier, caplog
    ):
        carrier.oldest_runs = lambda queue: (True, [10**30])  # PostgreSQL refuses this number
        ledger.request("work", sent_at="2020-01-01T00:00:00Z")
        ledger.request("work", due_at="now")
        accountant.next_slots = None  # causes an error in Rota's own code

        for _ in range(3):
            dispatcher.pass_once(connection, accountant)

        assert [run.job for run in carrier.runs] == ["work"]
        assert [event.step for event in emitted(caplog, "dispatcher.step_failed")] == ["account", "lost"]

    def test_a_connection_that_is_gone_ends_the_pass(self, dispatcher, accountant, connection, ledger):
        driver = connection.connection.dbapi_connection
        ledger.do("SELECT pg_terminate_backend(:pid)", pid=driver.get_backend_pid())

        with pytest.raises(DBAPIError):
            dispatcher.pass_once(connection, accountant)

    def test_the_end_of_a_pause_is_noticed(self, dispatcher, accountant, connection, database, ledger, carrier):
        with database.begin() as other:
            pauses.begin(other, "everything", by="ann", reason=None, until=None)
        ledger.request("work", due_at="now")
        dispatcher.pass_once(connection, accountant)
        assert carrier.runs == []

        with database.begin() as other:
            other.execute(text("UPDATE rota_pauses SET until = clock_timestamp()"))
        dispatcher.pass_once(connection, accountant)
        assert [run.job for run in carrier.runs] == ["work"]
