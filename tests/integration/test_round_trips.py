"""Transactions that need fewer round trips than psycopg2's, and otherwise behave as psycopg2's."""

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import psycopg2
import pytest
from psycopg2 import extensions, sql
from sqlalchemy import Engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from core import database as databases
from core import job
from core.round_trips import OneTripConnection
from core.testing import RunJob
from core.worker.executor import Executor
from tests.support.eventually import eventually
from tests.support.proxy import CHUNK, Proxy

ROWS = "CREATE TABLE rows (number integer PRIMARY KEY, other integer REFERENCES rows DEFERRABLE INITIALLY DEFERRED)"


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """Yield an engine, and a table whose foreign key is checked at the commit."""
    engine = databases.connect(postgres_url, pool_size=2)
    with engine.begin() as connection:
        connection.exec_driver_sql(ROWS)
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE rows")
    databases.dispose(engine)


@pytest.fixture
def driver(engine: Engine) -> Iterator[OneTripConnection]:
    """Yield the driver's connection of an engine, which nobody else uses meanwhile."""
    with engine.connect() as connection:
        yield connection.connection.driver_connection  # type: ignore[misc]


def numbers(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT number FROM rows ORDER BY number")).scalars())


def insert(driver: OneTripConnection, number: int, other: int | None = None) -> None:
    with driver.cursor() as cursor:
        cursor.execute("INSERT INTO rows VALUES (%s, %s)", (number, other))


@dataclass
class Counting(Proxy):
    """Counts the messages of the clients, each of which waits for an answer."""

    path: str = ""
    messages: int = 0

    def begin(self, client: socket.socket) -> None:
        """Carry a connection to the server's Unix socket."""
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.path)
        self.sockets += [client, server]
        threading.Thread(target=self.count, args=(client, server), daemon=True).start()
        threading.Thread(target=self.pass_on, args=(server, client), daemon=True).start()

    def count(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on what the client sends, until either is closed."""
        with suppress(OSError):
            while data := client.recv(CHUNK):
                self.messages += 1
                server.sendall(data)
        self.shut(client, server)


@pytest.fixture
def counting(postgres_url: str) -> Iterator[tuple[Counting, Engine]]:
    """Yield a proxy that counts round trips, and an engine with one connection through it."""
    url = make_url(postgres_url)
    proxy = Counting(("127.0.0.1", 0), path=f"{url.query['host']}/.s.PGSQL.{url.query['port']}")
    threading.Thread(target=proxy.serve, daemon=True).start()
    local = url.set(host="127.0.0.1", port=proxy.port, query={})
    engine = databases.connect(local.render_as_string(hide_password=False), pool_size=1)
    yield proxy, engine
    databases.dispose(engine)
    proxy.listener.close()
    proxy.drop()


class TestRoundTrips:
    def test_begin_travels_with_the_first_statement(self, counting):
        proxy, engine = counting
        with engine.connect() as connection:  # opens the connection, which needs round trips of its own
            connection.exec_driver_sql("SELECT 1")
        before = proxy.messages

        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
            connection.exec_driver_sql("SELECT 2")

        assert proxy.messages - before == 3  # the last is COMMIT

    @pytest.mark.parametrize("overlap", ["allow", "wait"])
    def test_success_and_commit_travel_together(self, counting, executor, overlap):
        """A run with one statement: BEGIN with the statement, and the success with COMMIT."""
        proxy, engine = counting
        begun: list[int] = []

        def function(run):
            begun.append(proxy.messages)
            run.session.execute(text("SELECT 1"))

        counted = job("counted", queue="q", overlap=overlap)(function)
        run_job = RunJob(Executor(engine, executor.membership, "counted"))
        for _ in range(2):  # the first run prepares the statements
            run_id = run_job.request(counted)
            run_job.executor.execute(counted, run_id)
            after = proxy.messages

        assert after - begun[-1] == 2
        assert run_job.row(run_id).state == "succeeded"


class TestAsPsycopg2:
    """Each of these is the behaviour of a plain connection of psycopg2."""

    def test_a_transaction_is_rolled_back_and_committed(self, engine, driver):
        insert(driver, 1)
        assert (driver.status, driver.autocommit) == (extensions.STATUS_BEGIN, False)
        driver.rollback()
        insert(driver, 2)
        driver.commit()

        assert driver.status == extensions.STATUS_READY
        assert driver.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
        assert numbers(engine) == [2]

    @pytest.mark.parametrize(
        "query", [b"SELECT 1", sql.SQL("SELECT 1"), "SELECT 1"], ids=lambda each: type(each).__name__
    )
    def test_each_kind_of_statement_begins_a_transaction(self, driver, query):
        with driver.cursor() as cursor:
            cursor.execute(query)

            assert cursor.fetchall() == [(1,)]
        assert driver.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS

    @pytest.mark.parametrize("wrong", [("SELECT %s %s", (1,)), ("SELECT %(a)s", {"a": object()}), ("", None)])
    def test_a_statement_that_is_not_sent_begins_nothing(self, engine, driver, wrong):
        with driver.cursor() as cursor, pytest.raises((psycopg2.Error, IndexError)):
            cursor.execute(*wrong)
        insert(driver, 1)
        driver.rollback()

        assert numbers(engine) == []

    def test_a_refused_first_statement_leaves_a_failed_transaction(self, engine, driver):
        with driver.cursor() as cursor, pytest.raises(psycopg2.errors.UndefinedTable):
            cursor.execute("SELECT * FROM nothing")
        with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
            insert(driver, 1)
        driver.rollback()
        insert(driver, 2)
        driver.commit()

        assert numbers(engine) == [2]

    def test_a_refused_commit_leaves_no_transaction(self, engine, driver):
        insert(driver, 1, other=99)
        with pytest.raises(psycopg2.errors.ForeignKeyViolation):
            driver.commit()

        assert driver.status == extensions.STATUS_READY
        insert(driver, 2)
        driver.commit()
        assert numbers(engine) == [2]

    def test_a_named_cursor_reads_within_the_transaction(self, engine, driver):
        insert(driver, 1)
        with driver.cursor("named") as cursor:
            cursor.execute("SELECT number FROM rows")
            assert cursor.fetchall() == [(1,)]
        insert(driver, 2)
        driver.rollback()

        assert numbers(engine) == []

    def test_a_named_cursor_that_cannot_be_opened_leaves_the_transaction(self, engine, driver):
        insert(driver, 1)
        with driver.cursor("named") as cursor, pytest.raises(psycopg2.ProgrammingError, match="can't adapt"):
            cursor.execute("SELECT %s", (object(),))
        driver.rollback()

        assert driver.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
        assert (numbers(engine), driver.autocommit) == ([], False)

    def test_a_stream_that_cannot_begin_leaves_nothing_to_the_next_session(self, engine):
        with Session(engine) as session:
            session.execute(text("INSERT INTO rows VALUES (1)"))
            with pytest.raises(SQLAlchemyError):
                session.execute(text("SELECT :x").execution_options(yield_per=1), {"x": object()})
        with Session(engine) as session:
            session.execute(text("INSERT INTO rows VALUES (2)"))
            session.commit()

        assert numbers(engine) == [2]

    def test_an_exception_between_the_steps_of_beginning_begins_nothing(self, engine, driver):
        """A time limit may raise in any thread, at any place."""
        driver._is_open = True
        insert(driver, 1)
        driver.rollback()

        assert (numbers(engine), driver.autocommit) == ([], False)

    @pytest.mark.parametrize("command", ["COMMIT", "ROLLBACK"])
    def test_after_a_commit_as_text_a_new_transaction_begins(self, engine, driver, command):
        insert(driver, 1)
        with driver.cursor() as cursor:
            cursor.execute(command)
        insert(driver, 2)
        driver.rollback()

        assert numbers(engine) == ([1] if command == "COMMIT" else [])

    @pytest.mark.parametrize("before", [True, False])
    @pytest.mark.parametrize("within", [True, False])
    def test_a_block_commits(self, engine, driver, before, within):
        if before:
            insert(driver, 1)
        with driver:
            if within:
                insert(driver, 2)
        insert(driver, 3)
        driver.rollback()

        assert numbers(engine) == [1] * before + [2] * within
        assert (driver.status, driver.autocommit) == (extensions.STATUS_READY, False)

    def test_a_block_that_raises_rolls_back(self, engine, driver):
        insert(driver, 1)
        with pytest.raises(psycopg2.errors.UniqueViolation), driver:
            insert(driver, 1)

        assert numbers(engine) == []

    def test_a_stream_of_a_session_reads_its_own_rows(self, engine):
        with Session(engine) as session:
            session.execute(text("INSERT INTO rows VALUES (1), (2), (3)"))
            stream = session.execute(text("SELECT number FROM rows ORDER BY 1").execution_options(yield_per=1))
            assert list(stream.scalars()) == [1, 2, 3]
            session.commit()

        assert numbers(engine) == [1, 2, 3]

    def test_a_large_object_belongs_to_the_transaction(self, driver):
        insert(driver, 1)
        made = driver.lobject()
        made.write(b"of ours")
        driver.commit()
        insert(driver, 2)

        assert driver.lobject(made.oid).read() == "of ours"
        driver.lobject(made.oid).unlink()
        driver.rollback()

    def test_copy_belongs_to_the_transaction(self, engine, driver):
        with driver.cursor() as cursor:
            cursor.copy_expert("COPY rows (number) FROM STDIN", io.StringIO("1\n"))
            cursor.execute("INSERT INTO rows VALUES (2)")
            cursor.copy_expert("COPY rows (number) FROM STDIN", io.StringIO("3\n"))
        driver.rollback()
        insert(driver, 4)
        with driver.cursor() as cursor:
            cursor.copy_expert("COPY rows (number) FROM STDIN", io.StringIO("5\n"))
        driver.commit()

        assert numbers(engine) == [4, 5]

    @pytest.mark.parametrize("name", ["autocommit", "readonly", "deferrable", "isolation_level"])
    def test_settings_of_transactions_are_refused_within_one(self, driver, name):
        insert(driver, 1)

        with pytest.raises(psycopg2.ProgrammingError, match="inside a transaction"):
            setattr(driver, name, True)

    def test_other_commands_for_the_outside_are_refused_in_a_transaction(self, driver):
        insert(driver, 1)

        with pytest.raises(psycopg2.ProgrammingError, match="inside a transaction"):
            driver.set_session(readonly=True)
        with pytest.raises(psycopg2.ProgrammingError, match="inside a transaction"):
            driver.tpc_begin("mine")

    @pytest.mark.parametrize(
        "end", [OneTripConnection.reset, lambda driver: driver.set_isolation_level(1)], ids=["reset", "isolation level"]
    )
    def test_resetting_rolls_back(self, engine, driver, end):
        insert(driver, 1)
        end(driver)

        assert driver.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
        assert numbers(engine) == []

    @pytest.mark.parametrize("options", [{"readonly": True}, {"isolation_level": "SERIALIZABLE"}])
    def test_a_transaction_has_the_kind_that_was_set_before_it(self, driver, options):
        driver.set_session(**options)
        with driver.cursor() as cursor:
            cursor.execute("SELECT current_setting('transaction_read_only'), current_setting('transaction_isolation')")
            ((readonly, level),) = cursor.fetchall()

        assert {"readonly": readonly == "on", "isolation_level": level.upper()}.items() >= options.items()

    def test_in_autocommit_each_statement_is_a_transaction(self, engine, driver):
        driver.autocommit = True
        insert(driver, 1)
        driver.rollback()

        assert numbers(engine) == [1]


class TestSuccessAtCommit:
    def test_it_wakes_the_run_that_waits_for_the_end_of_this_run(self, run_job, ledger):
        """The waiting run came while the function was at work, and is parked until then."""
        executor, second = run_job.executor, []

        def function(run):
            run.session.execute(text("SELECT 1"))
            if not second:
                second.append(run_job.request(waiting))
                executor.execute(waiting, second[0])
                assert eventually(lambda: not executor.wakes._waiting, within=5), "nobody looks again"
                assert ledger.value("SELECT sent_at = 'infinity' FROM rota_runs WHERE id = :id", id=second[0])

        waiting = job("waiting", queue="q", overlap="wait")(function)
        assert run_job(waiting).state == "succeeded"

        assert eventually(
            lambda: ledger.value("SELECT sent_at IS NULL FROM rota_runs WHERE id = :id", id=second[0]), within=5
        )
        executor.wakes.stop()

    def test_a_listener_that_streams_before_the_commit_does_not_lose_the_success(self, run_job, ledger):
        """A named cursor makes psycopg2 send COMMIT itself, after the success."""

        def function(run):
            run.session.execute(text("SELECT 1"))

            @event.listens_for(run.session, "before_commit")
            def read(session):
                session.execute(text("SELECT generate_series(1, 3)").execution_options(yield_per=1)).all()

        assert run_job(job("streaming", queue="q", overlap="allow")(function)).state == "succeeded"
