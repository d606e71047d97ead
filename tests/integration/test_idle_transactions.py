"""A run that waits holds neither a connection nor a transaction, or its idle transaction is named."""

import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from core import job
from core.ledger import transactions
from core.ledger.processes import Identity
from core.observability.events import RunIdleInTransaction
from core.operations import health
from core.worker import idle_transactions
from core.worker.heartbeat import Heartbeat
from tests.support.emitted import emitted
from tests.support.eventually import eventually

RUNS = 30
#: Of connections of jobs. Connections of the tests are never idle in a transaction at that time.
IDLE = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'"


class Network:
    """The network for which the runs wait."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.answer = threading.Event()

    def ask(self) -> None:
        self.asked.release()
        assert self.answer.wait(60)


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def wait_in(network, run_job, executor):
    """Let runs of a job wait for the network at the same time, until the block ends."""

    @contextmanager
    def wait_in(waiting, runs=RUNS):
        ids = [run_job.request(waiting) for _ in range(runs)]
        threads = [threading.Thread(target=executor.execute, args=(waiting, run_id), daemon=True) for run_id in ids]
        try:
            for thread in threads:
                thread.start()
            assert all(network.asked.acquire(timeout=60) for _ in threads)
            yield ids
        finally:
            network.answer.set()
            for thread in threads:
                thread.join(60)

    return wait_in


def not_at_all(run):
    """Wait without having used the session."""


def until_a_checkpoint(run):
    run.session.execute(text("SELECT 1"))
    run.checkpoint()


def until_a_checkpoint_with_progress(run):
    run.session.execute(text("SELECT 1"))
    run.checkpoint({"seen": 1})


def and_still(run):
    run.session.execute(text("SELECT 1"))


@pytest.mark.parametrize(
    ("use", "held"),
    [(not_at_all, 0), (until_a_checkpoint, 0), (until_a_checkpoint_with_progress, 0), (and_still, 5)],
)
def test_runs_that_wait_hold_a_connection_and_a_transaction_only_if_they_use_them(
    use: Callable, held, network, wait_in, ledger, database, run_job
):
    @job("wait")
    def wait(run):
        use(run)
        network.ask()

    with wait_in(wait, held or RUNS) as ids:
        assert ledger.value(IDLE) == held
        assert database.pool.checkedout() == held

    assert {ledger.run(run_id).state for run_id in ids} == {"succeeded"}


@pytest.fixture
def soon(monkeypatch):
    """Let a transaction count as idle after a tenth of a second."""
    monkeypatch.setattr(transactions, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(idle_transactions, "IDLE_SECONDS", 0.1)


@pytest.fixture
def heartbeat(database):
    with ExitStack() as stack:
        beating = Heartbeat(
            database, Identity("worker", "test:1", "rota:idle"), every_seconds=0.05, lease=timedelta(seconds=15)
        )
        stack.callback(beating.stop)
        beating.start([])
        assert beating.registered.wait(10)
        yield beating


def counted():
    return REGISTRY.get_sample_value("rota_idle_transactions_total", {"task": "hold"}) or 0


@pytest.mark.usefixtures("soon")
def test_a_transaction_that_stays_idle_is_logged_and_counted_once(heartbeat, network, wait_in, caplog, ledger):
    @job("hold")
    def hold(run):
        and_still(run)
        network.ask()

    def expiry():
        return ledger.value("SELECT expires_at FROM rota_processes WHERE id = :id", id=heartbeat.process_id)

    before = counted()
    with wait_in(hold, 1) as (run_id,):
        (told,) = eventually(lambda: emitted(caplog, "run.idle_in_transaction"), within=10)
        for _ in range(2):  # the second renewal comes after another check
            renewed = expiry()
            eventually(lambda renewed=renewed: expiry() > renewed, within=10)

    assert isinstance(told, RunIdleInTransaction)
    assert (told.job, told.run, told.seconds >= 0.1) == ("hold", run_id, True)
    assert len(emitted(caplog, "run.idle_in_transaction")) == 1
    assert counted() - before == 1
    assert idle_transactions._open == {}


def test_an_old_transaction_that_was_used_a_moment_ago_is_not_named(database, network, wait_in, caplog):
    @job("hold")
    def hold(run):
        and_still(run)
        network.ask()

    with wait_in(hold, 1), database.connect() as connection:
        (opened,) = idle_transactions._open.values()
        opened.began -= 3600
        idle_transactions.tell(connection)

    assert emitted(caplog, "run.idle_in_transaction") == []


@pytest.mark.usefixtures("soon")
def test_the_check_names_the_run_and_what_to_do(database, network, wait_in, ledger):
    @job("hold")
    def hold(run):
        and_still(run)
        network.ask()

    application = "SELECT application_name FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    with wait_in(hold, 1) as (run_id,):
        ledger.do("UPDATE rota_processes SET application = :name", name=ledger.value(application))
        with database.connect() as connection:
            found = eventually(lambda: list(health.idle_transactions(connection, live=True)), within=10)

    (answer,) = found
    assert (answer.name, answer.outcome) == ("idle transaction", "wrong")
    assert answer.found.startswith(f"run {run_id} of hold, on ")
    assert "run.checkpoint()" in answer.advice
