"""Runs that are taken from the ledger without Redis. The thread that takes them continues after errors."""

from contextlib import contextmanager
from queue import SimpleQueue

import pytest

from core import database as databases
from core.observability.events import LedgerFeedFailed, LedgerFeedInterrupted
from core.transport.work_queue import Opening
from core.worker.ledger_feed import LedgerFeed
from tests.support.emitted import emitted
from tests.support.eventually import eventually

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rota:feed'"


class Threads:
    """One thread that is always free."""

    are_draining = False

    def __init__(self) -> None:
        self.runs: SimpleQueue[int] = SimpleQueue()

    def openings(self, queues):
        return [Opening(1, queues)]

    def work_on(self, run):
        self.runs.put(run.run_id)


class Faulty(Threads):
    """Raises an error once."""

    faults = 1

    def openings(self, queues):
        if self.faults:
            self.faults -= 1
            raise ValueError("broken on purpose")
        return super().openings(queues)


@pytest.fixture
def feeding(postgres_url, carrier):
    """Yield a function that runs the ledger feed of the default queue for these threads."""
    carrier.carries = False

    @contextmanager
    def feeding(threads):
        engine = databases.connect(postgres_url, application="rota:feed")
        feed = LedgerFeed(engine, carrier, scopes={"work": ["job:work"]}, every_seconds=0.05, resend_seconds=60)
        feed.feed(threads, ["default"])
        yield
        feed.stop()
        databases.dispose(engine)

    return feeding


def test_it_goes_on_after_its_connection_was_cut(feeding, ledger, caplog):
    threads = Threads()
    with feeding(threads):
        first = ledger.request()
        assert threads.runs.get(timeout=10) == first
        assert ledger.rows(CUT)
        second = ledger.request(key="second")

        assert {threads.runs.get(timeout=10) for _ in range(2)} == {first, second}  # the first run was not claimed
        (told,) = eventually(lambda: emitted(caplog, "ledger_feed.interrupted"), within=5)
    assert isinstance(told, LedgerFeedInterrupted)
    assert "connection" in told.error


def test_it_goes_on_after_a_fault(feeding, ledger, caplog):
    threads = Faulty()
    with feeding(threads):
        run_id = ledger.request()

        assert threads.runs.get(timeout=10) == run_id
    assert emitted(caplog, "ledger_feed.failed") == [LedgerFeedFailed()]
    assert "ValueError: broken on purpose" in caplog.text
