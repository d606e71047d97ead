"""The transaction of a plugin's route: nothing that the route does ends it before Rota does, and it ends in time."""

import asyncio
import threading
import time
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, PendingRollbackError

from core import settings
from core.web import plugin_calls
from core.web.refusals import PluginTooSlow
from tests.support.eventually import eventually

CHANGE = "INSERT INTO rota_audit (actor, via, action, target) VALUES ('plugin', 'x', 'x', 'x')"


@pytest.fixture
def calls(database):
    with plugin_calls.opened(settings.load(), "shop") as calls:
        yield calls


def answer(calls, work, *, is_reading=False):
    """Let ``work`` be a route's function, which is called once."""
    return asyncio.run(calls.answer(lambda session: work(session) or b"", is_reading=is_reading))


def changes(ledger):
    return ledger.value("SELECT count(*) FROM rota_audit")


def sends(*statements):
    def work(session):
        for statement in statements:
            session.execute(text(statement))

    return work


@pytest.mark.parametrize(
    "statement", ["COMMIT", f"{CHANGE}; COMMIT", "/* */ End;", "ROLLBACK", "COMMIT; BEGIN", "START TRANSACTION"]
)
def test_sql_that_would_end_the_transaction_is_refused_and_nothing_is_changed(calls, ledger, statement):
    with pytest.raises(RuntimeError, match="does not begin or end transactions"):
        answer(calls, sends(CHANGE, statement, CHANGE))
    with pytest.raises(RuntimeError, match="does not begin or end transactions"):
        answer(calls, sends("SELECT 1", statement), is_reading=True)

    assert changes(ledger) == 0
    assert answer(calls, sends(CHANGE)) == b""  # the connection can be used again
    assert changes(ledger) == 1


def test_a_route_that_goes_on_after_the_refusal_cannot_commit_either(calls, ledger):
    def work(session):
        with suppress(RuntimeError):
            session.execute(text("COMMIT"))
        with suppress(RuntimeError):
            session.connection().commit()
        session.execute(text(CHANGE))

    with pytest.raises(PendingRollbackError):
        answer(calls, work)
    assert changes(ledger) == 0


def test_nothing_more_is_done_after_a_transaction_that_the_driver_has_ended(calls, ledger):
    def work(session):
        session.execute(text("SELECT 1"))
        session.connection().connection.driver_connection.rollback()
        session.execute(text(CHANGE))

    for is_reading in (True, False):
        with pytest.raises(RuntimeError, match="does not begin or end transactions"):
            answer(calls, work, is_reading=is_reading)
    assert changes(ledger) == 0


def test_a_route_that_reads_cannot_make_its_transaction_write(calls, ledger):
    with pytest.raises(RuntimeError, match="does a route with GET change something"):
        answer(calls, sends("SET TRANSACTION READ WRITE", CHANGE), is_reading=True)

    assert changes(ledger) == 0


@pytest.mark.parametrize("is_patient", [True, False])
def test_a_route_that_executes_statements_for_ever_keeps_no_locks(calls, ledger, database, is_patient):
    go_on, errors = threading.Event(), []
    answer(calls, sends(CHANGE))
    calls.seconds = 0.3

    def work(session):
        session.execute(text("UPDATE rota_audit SET via = 'y'"))
        while not go_on.is_set():
            try:
                session.execute(text("SELECT pg_sleep(0.01)"))
            except Exception as error:
                errors.append(type(error))
                if not is_patient:
                    raise
                session.rollback()

    def is_free():
        with database.begin() as connection, suppress(OperationalError):
            return connection.scalar(text("SELECT true FROM rota_audit FOR UPDATE NOWAIT"))

    began = time.monotonic()
    with pytest.raises(PluginTooSlow):
        answer(calls, work)
    eventually(is_free, within=plugin_calls.STATEMENT_SECONDS)
    assert time.monotonic() - began < calls.seconds + plugin_calls.STATEMENT_SECONDS
    eventually(lambda: errors and (not is_patient or errors[-1] is RuntimeError))  # there is no further transaction
    go_on.set()
    calls.threads.shutdown(wait=True)

    assert ledger.value("SELECT via FROM rota_audit") == "x"
