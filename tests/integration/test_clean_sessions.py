"""Changes of a job to its database session end with its run, and do not affect other jobs."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg2 import sql
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from core import database as databases
from core import job
from core.connections import WatchedConnection, marks
from core.testing import Member, RunJob
from core.worker.executor import Executor

FORGETTING = """
    CREATE OR REPLACE FUNCTION forget_prepared() RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN EXECUTE 'DEALLOCATE ' || 'ALL'; END $$
"""

SHOWN = (
    "TimeZone",
    "statement_timeout",
    "search_path",
    "default_transaction_read_only",
    "transaction_read_only",
    "transaction_isolation",
    "role",
    "application_name",
    "client_encoding",
    "tcp_keepalives_idle",
)
SETTINGS = ", ".join(f"current_setting('{name}')" for name in SHOWN)
STATE = text(f"""
    SELECT concat_ws('|', {SETTINGS}),
           (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
           (SELECT count(*) FROM pg_class WHERE relname = 'mine'),
           (SELECT count(*) FROM pg_listening_channels()),
           (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE 'rota_%'),
           (SELECT count(*) FROM pg_cursors WHERE is_holdable)
""")


@pytest.fixture
def one(postgres_url: str) -> Iterator[Engine]:
    """Yield an engine with one connection, so that the next session has the same connection."""
    engine = databases.connect(postgres_url, pool_size=1)
    yield engine
    databases.dispose(engine)


def driver_of(session: Session) -> WatchedConnection:
    return session.connection().connection.driver_connection  # type: ignore[return-value]


def state_of(engine: Engine) -> Any:
    with Session(engine) as session:
        return tuple(session.execute(STATE).one())


def raw(statement: str | bytes | sql.Composable) -> Callable[[Session], None]:
    def execute(session: Session) -> None:
        with driver_of(session).cursor() as cursor:
            cursor.execute(statement)

    return execute


LEFT: dict[str, str | Callable[[Session], Any]] = {
    "time zone": "SET TIME ZONE 'Asia/Tokyo'",
    "timeout": "SET statement_timeout = 1234",
    "in a comment's shadow": "/* of ours */ -- really\n  SET statement_timeout = 1234",
    "second statement": "SELECT 1; SET statement_timeout = 1234",
    "search path": "SET search_path TO pg_catalog",
    "read only": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "default read only": "SET default_transaction_read_only = on",
    "role": "SET ROLE pg_read_all_data",
    "set_config": "SELECT set_config('statement_timeout', '1234', false)",
    "do": "DO $$ BEGIN PERFORM set_config('statement_timeout', '1234', false); END $$",
    "advisory lock": "SELECT pg_advisory_lock(4711)",
    "tried advisory lock": "SELECT pg_try_advisory_lock_shared (4711)",
    "temporary table": "CREATE TEMP TABLE mine (x int)",
    "listen": "LISTEN mine",
    "prepared": "PREPARE mine AS SELECT 1",
    "deallocate": "DEALLOCATE ALL",
    "discard": lambda session: (driver_of(session).set_session(autocommit=True), raw("DISCARD ALL")(session)),
    "holdable cursor": "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
    "raw cursor": raw("SET statement_timeout = 1234"),
    "bytes": raw(b"SET statement_timeout = 1234"),
    "composed": raw(sql.SQL("SET statement_timeout = {}").format(sql.Literal(1234))),
    "client's isolation": lambda session: driver_of(session).set_session(isolation_level="SERIALIZABLE"),
    "client's read only": lambda session: driver_of(session).set_session(readonly=True),
    "client's encoding": lambda session: driver_of(session).set_client_encoding("LATIN1"),
    "client's autocommit": lambda session: driver_of(session).set_session(autocommit=True),
}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT.keys())
@pytest.mark.parametrize("is_committed", [True, False], ids=["committed", "rolled back"])
def test_what_a_job_leaves_in_its_session_does_not_reach_the_next(one: Engine, left: Any, is_committed: bool):
    before = state_of(one)

    with Session(one) as session:
        pid = driver_of(session).info.backend_pid
        session.commit()
        if isinstance(left, str):
            session.execute(text(left))
        else:
            driver = driver_of(session)
            driver.rollback()
            left(session)
        if is_committed:
            session.commit()

    assert state_of(one) == before
    with Session(one) as session:
        assert driver_of(session).info.backend_pid == pid
        assert not driver_of(session).autocommit
        session.execute(text("CREATE TABLE probe (x int)"))
        session.rollback()


def test_a_function_that_sets_unseen_is_found_where_postgres_reports_it(one: Engine):
    before = state_of(one)
    with Session(one) as session:
        session.execute(
            text("""
            CREATE FUNCTION quietly() RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN PERFORM set_config('TimeZone', 'Asia/Tokyo', false); END $$
        """)
        )
        session.commit()
        session.execute(text("SELECT quietly()"))
        session.commit()

    assert state_of(one) == before


def test_an_ordinary_session_is_not_reset(one: Engine, monkeypatch: pytest.MonkeyPatch):
    resets: list[WatchedConnection] = []
    monkeypatch.setattr(WatchedConnection, "discard", lambda self: resets.append(self))

    with Session(one) as session:
        session.execute(text("CREATE TABLE counted (x int)"))
        session.execute(text("INSERT INTO counted VALUES (1)"))
        session.execute(text("UPDATE counted SET x = 2"))
        session.execute(text("SET LOCAL statement_timeout = 1000"))
        session.execute(text("SELECT pg_advisory_xact_lock(1)"))
        session.rollback()

    assert resets == []


@pytest.mark.parametrize(
    ("statement", "marked"),
    [
        ("UPDATE t SET x = 1", (False, False)),
        ("select * from temperatures", (False, False)),
        ("SET LOCAL x = 1", (False, False)),
        ("set session x = 1", (True, False)),
        ("begin; reset all", (True, False)),
        ("create temporary table t (x int)", (True, False)),
        ("deallocate prepare rota_claim", (True, True)),
        ("DISCARD PLANS", (True, True)),
    ],
)
def test_statements_are_read(statement: str, marked: tuple[bool, bool]):
    assert marks(statement) == marked


@pytest.mark.parametrize("statement", ["DEALLOCATE ALL", "DISCARD PLANS; DEALLOCATE ALL"])
def test_a_job_that_forgets_prepared_statements_succeeds_and_harms_no_later_run(run_job, statement: str):
    @job("forget", max_retries=0, retry_delay=timedelta(0))
    def forget(run):
        run.session.execute(text(statement))

    @job("innocent", max_retries=0, retry_delay=timedelta(0))
    def innocent(run):
        run.session.execute(text("SELECT 1"))

    assert [run_job(each).state for each in (innocent, forget, innocent, forget, innocent)] == ["succeeded"] * 5


def test_prepared_statements_that_were_forgotten_unseen_are_prepared_again_and_nothing_is_charged(one, process):
    """A database function has executed DEALLOCATE. Rota cannot notice that in the job's statements."""
    run_job = RunJob(Executor(one, Member(process.id), "test:1"))
    calls: list[int] = []
    with one.begin() as connection:
        connection.exec_driver_sql(FORGETTING)

    @job("forget", max_retries=0, retry_delay=timedelta(0))
    def forget(run):
        calls.append(run.attempt)
        run.session.execute(text("SELECT forget_prepared()"))

    @job("step", max_retries=0, retry_delay=timedelta(0))
    def step(run):
        run.session.execute(text("SELECT 1"))
        run.checkpoint({"done": 1})

    try:
        rows = [run_job(each) for each in (step, forget, step, forget, forget)]
    finally:
        with one.begin() as connection:
            connection.exec_driver_sql("DROP FUNCTION forget_prepared")

    assert [(row.state, row.attempt, row.failures) for row in rows] == [("succeeded", 1, 0)] * 5
    assert len(calls) > 3, "none was forgotten"


def test_the_pool_says_nothing_of_its_own_at_the_level_of_events(postgres_url, caplog):
    caplog.set_level("INFO")
    engine = databases.connect(postgres_url, pool_size=1)
    with engine.connect():
        pass
    databases.dispose(engine)

    assert caplog.messages == []
