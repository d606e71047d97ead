"""The fast lane of local mode: messages are in memory, and threads of this process handle them."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator

import dramatiq
import pytest
from dramatiq.worker import Worker

from core.ledger.carrier import OutgoingMessage, OutgoingRun
from core.observability.events import MessageLost
from core.transport.delivery import Delivery
from core.transport.local import LocalBroker, LocalCarrier
from core.transport.messages import run_message
from core.transport.work_queue import WorkQueue
from tests.support.emitted import emitted
from tests.support.eventually import eventually


@pytest.fixture
def heard() -> Counter[int]:
    return Counter()


@pytest.fixture
def go_on() -> threading.Event:
    return threading.Event()


@pytest.fixture
def broker(heard: Counter[int], go_on: threading.Event) -> LocalBroker:
    """Return a broker with an actor that records words when it is allowed to."""
    broker = LocalBroker()

    def hear(word: int) -> None:
        assert go_on.wait(10)
        heard[word] += 1

    dramatiq.actor(hear, broker=broker, actor_name="hear", queue_name="fast")
    return broker


@pytest.fixture
def worker(broker: LocalBroker, go_on: threading.Event) -> Iterator[Worker]:
    worker = Worker(broker, worker_threads=2, worker_timeout=20)
    worker.start()
    yield worker
    go_on.set()
    worker.stop(timeout=5_000)


@pytest.fixture
def send(broker: LocalBroker):
    """Send words through the carrier."""
    carrier = LocalCarrier(broker)
    return lambda *words: carrier.post([OutgoingMessage("hear", "fast", {"word": word}) for word in words])


def test_each_message_is_worked_on_once(broker, worker, send, heard, go_on):
    go_on.set()
    send(*range(100))

    eventually(lambda: broker.is_drained, within=10)
    assert heard == Counter(range(100))


def test_a_delayed_message_is_worked_on_when_it_is_due(broker, worker, heard, go_on):
    go_on.set()
    broker.enqueue(broker.get_actor("hear").message(word=1), delay=50)

    eventually(lambda: heard == {1: 1}, within=10)
    eventually(lambda: broker.is_drained, within=10)


def test_what_is_in_memory_is_finished_before_it_counts_as_drained(broker, worker, send, heard, go_on):
    send(*range(20))
    eventually(lambda: not worker.work_queue.spare, within=10)
    broker.drain()
    assert broker.is_draining
    assert not broker.is_drained

    go_on.set()

    eventually(lambda: broker.is_drained, within=10)
    assert heard.total() == 20


def test_a_run_counts_among_what_is_in_memory(broker):
    work_queue = WorkQueue(2)
    broker.begin_work(work_queue)
    work_queue.expect("fast")
    work_queue.put(Delivery(run_message(OutgoingRun(1, "hear", "fast")), broker.consume("fast")))
    assert not broker.is_drained

    work_queue.take_waiting()

    assert broker.is_drained


def test_what_has_not_begun_when_the_process_ends_is_named_as_lost(broker, worker, send, go_on, caplog):
    send(*range(4))
    eventually(lambda: worker.work_queue.qsize() == 2, within=10)
    stopping = threading.Thread(target=worker.stop, kwargs={"timeout": 5_000})
    with caplog.at_level(logging.WARNING):
        stopping.start()
        eventually(lambda: not any(thread.running for thread in worker.workers), within=10)
        go_on.set()
        stopping.join(10)

    assert emitted(caplog, "message.lost") == [MessageLost("hear", 2)]
