"""A worker process's parts start with it, each whether or not the others can."""

import errno
from contextlib import ExitStack
from datetime import timedelta

import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.worker import Worker

from core.dispatcher.loop import Dispatcher
from core.ledger.processes import Identity
from core.middleware.lifecycle import ProcessLife
from core.testing import registry_of
from core.worker.heartbeat import Heartbeat
from tests.support.eventually import eventually


@pytest.fixture
def boot(database, carrier):
    """Starts a worker, and returns its life."""
    carrier.recover = carrier.maintain = lambda *_: None
    carrier.queues_with_messages = set
    spans = {"every_seconds": 0.05, "resend_seconds": 5, "max_crashes": 3, "orphan_seconds": 60}
    with ExitStack() as stack:

        def boot(make_watchdog):
            life = ProcessLife(
                lambda queues: Heartbeat(
                    database,
                    Identity("worker", "test:1", "rota:life", queues=queues),
                    every_seconds=0.05,
                    lease=timedelta(seconds=15),
                ),
                lambda: Dispatcher(database, registry_of(), carrier, **spans),
                make_watchdog,
            )
            worker = Worker(StubBroker(middleware=[life]), worker_threads=1)
            stack.callback(worker.stop, timeout=5_000)
            worker.start()
            return life

        yield boot


def no_room():
    raise BlockingIOError(errno.EAGAIN, "no room for another process")


def test_a_process_that_can_have_no_watchdog_is_registered_and_dispatches_all_the_same(boot, ledger):
    life = boot(no_room)

    assert eventually(lambda: life.process_id, within=5)
    assert life.dispatcher.is_alive()
    assert ledger.value("SELECT count(*) FROM rota_processes") == 1
