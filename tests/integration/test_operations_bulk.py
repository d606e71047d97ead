"""Retries and drops of many runs, without a command line."""

import re
import threading

import pytest

from core import job
from core.errors import IncompleteError, SelectionError
from core.ledger.audit import Actor
from core.operations import bulk
from core.operations.batches import Batches
from core.operations.selection import Selection
from core.plugins import loading
from tests.support.racing import race

ANN = Actor("ann", via="http")


@job("send-bill", queue="mail")
def send_bill(run):
    pass


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(send_bill)


@pytest.fixture
def many(ledger):
    """Return many dead runs."""

    def many(count):
        ledger.do(
            "INSERT INTO rota_runs (job, queue, state, reason, attempt, finished_at) "
            "SELECT 'send-bill', 'mail', 'dead', 'retries', 4, clock_timestamp() FROM generate_series(1, :count)",
            count=count,
        )

    return many


@pytest.fixture
def plan(database):
    """Return the plan of a retry."""

    def plan(**selected):
        with database.connect() as connection:
            return bulk.plan_retry(connection, loading.current(), Selection(**selected), ANN)

    return plan


def test_it_is_in_the_audit_once_with_who_did_it_and_by_which_way(many, plan, database, ledger):
    many(bulk.BATCH + 1)

    assert bulk.carry_out(database, plan(job="send-bill")) == bulk.BATCH + 1

    (entry,) = ledger.rows("SELECT * FROM rota_audit")
    assert (entry.actor, entry.via, entry.action, entry.target) == ("ann", "http", "retry", "send-bill")
    assert entry.details == {"runs": bulk.BATCH + 1, "job": "send-bill"}


def test_what_came_of_it_has_its_runs_as_they_are_now(many, plan, database):
    many(bulk.SHOWN + 1)
    planned = plan(job="send-bill")
    done = bulk.carry_out(database, planned)

    with database.connect() as connection:
        told = bulk.outcome(connection, planned, done)

    assert (told.matched, told.retried, len(told.runs)) == (bulk.SHOWN + 1, bulk.SHOWN + 1, bulk.SHOWN)
    assert {run.state for run in told.runs} == {"retrying"}


def test_a_selection_of_nothing_does_not_mean_everything(many, plan):
    many(1)

    with pytest.raises(SelectionError, match="give the runs' ids"):
        plan()


def test_a_stop_between_batches_is_told_with_how_far_it_came(many, plan, database, ledger):
    many(bulk.BATCH * 2)
    stop, advanced = threading.Event(), []

    def advance(count):
        advanced.append(count)
        stop.set()

    with pytest.raises(IncompleteError, match="stopped: retried 500 of 1000; the others are unchanged"):
        bulk.carry_out(database, plan(job="send-bill"), stop=stop, advance=advance)

    assert advanced == [bulk.BATCH]
    assert ledger.value("SELECT details ->> 'runs' FROM rota_audit") == str(bulk.BATCH)


@pytest.mark.parametrize(("rate", "sizes"), [(None, [500, 500, 1]), (300, [300, 300, 300, 101]), (0.9, [1] * 1001)])
def test_batches_fit_the_rate(rate, sizes):
    class Patient:
        """An event that is never set, and whose ``wait`` returns at once."""

        def is_set(self):
            return False

        def wait(self, seconds):
            assert seconds >= 0

    assert [len(batch) for batch in bulk.paced(range(1001), rate, Patient())] == sizes


def test_a_database_that_goes_away_leaves_whole_batches_and_says_how_many(many, plan, ledger, database):
    many(bulk.BATCH * 2)
    ledger.do("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT count(*) FROM rota_runs WHERE state = 'retrying') >= 500 THEN
                PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
            RETURN NEW; END $$""")
    ledger.do("CREATE TRIGGER refuse BEFORE UPDATE ON rota_runs FOR EACH STATEMENT EXECUTE FUNCTION refuse()")
    try:
        with pytest.raises(IncompleteError) as stopped:
            bulk.carry_out(database, plan(job="send-bill"))
    finally:
        ledger.do("DROP FUNCTION refuse CASCADE")

    assert re.match(r"retried 500 of 1000, then: \w", str(stopped.value))
    assert ledger.value("SELECT count(*) FROM rota_runs WHERE state = 'retrying'") == 500
    assert ledger.value("SELECT details ->> 'runs' FROM rota_audit") == "500"


def test_a_batch_that_postgresql_ends_because_of_a_deadlock_is_tried_again(many, database, ledger):
    """Two batches lock the same two rows in opposite orders."""
    many(2)
    first, second = (row.id for row in ledger.rows("SELECT id FROM rota_runs ORDER BY id"))
    both_have_one, tries = threading.Barrier(2), []

    def lock(order):
        def act(connection):
            tries.append(order)
            for place, run_id in enumerate(order):
                connection.exec_driver_sql(f"SELECT 1 FROM rota_runs WHERE id = {run_id} FOR UPDATE")
                if place == 0 and len(tries) <= 2:
                    both_have_one.wait(10)
            return len(order)

        return Batches(database, ANN, "cancel", "send-bill").do(act)

    assert race(lambda: lock([first, second]), lambda: lock([second, first])) == [2, 2]
    assert len(tries) > 2
    assert len(ledger.rows("SELECT 1 FROM rota_audit")) == 2
