"""The parts of a worker process start with it, each even if another part cannot start."""

import errno
from contextlib import ExitStack
from datetime import timedelta

import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.worker import Worker

from core.dispatcher.loop import Dispatcher
from core.ledger.processes import Identity
from core.middleware.lifecycle import Lifecycle
from core.testing import registry_of
from core.worker import watchdog
from core.worker.heartbeat import Heartbeat
from core.worker.watchdog import Watchdog
from tests.support.eventually import eventually


@pytest.fixture
def boot(database, carrier):
    """Start a worker. Return its heartbeat and its dispatcher."""
    carrier.recover = carrier.maintain = lambda *_: None
    carrier.queues_with_messages = set
    spans = {"every_seconds": 0.05, "resend_seconds": 5, "max_crashes": 3, "orphan_seconds": 60}
    with ExitStack() as stack:

        def boot():
            identity = Identity("worker", "test:1", "rota:life")
            heartbeat = Heartbeat(database, identity, every_seconds=0.05, lease=timedelta(seconds=15))
            dispatcher = Dispatcher(database, registry_of(), carrier, **spans)
            lifecycle = Lifecycle(heartbeat, dispatcher, Watchdog(15))
            worker = Worker(StubBroker(middleware=[lifecycle]), worker_threads=1)
            stack.callback(worker.stop, timeout=5_000)
            worker.start()
            return heartbeat, dispatcher

        yield boot


def no_room(*_, **__):
    raise BlockingIOError(errno.EAGAIN, "no room for another process")


def test_a_process_that_can_have_no_watchdog_is_registered_and_dispatches_all_the_same(boot, ledger, monkeypatch):
    monkeypatch.setattr(watchdog.subprocess, "Popen", no_room)

    heartbeat, dispatcher = boot()

    assert eventually(lambda: heartbeat.process_id, within=5)
    assert dispatcher.is_alive()
    assert ledger.value("SELECT count(*) FROM rota_processes") == 1
