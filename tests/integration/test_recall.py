"""Messages of runs are taken back from a queue that is too long for its workers."""

import itertools
import threading
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from core import database as databases
from core import enqueue, enqueue_many, job, send
from core.dispatcher import windows
from core.dispatcher.recall import recall
from core.dispatcher.sending import Sharing, send_due
from core.dispatcher.windows import LEAST, Windows
from core.ledger.carrier import Flow
from core.observability.events import DispatcherRecalled
from tests.support.emitted import emitted
from tests.support.eventually import eventually

QUEUES = ["default"]
JOBS = ["work"]


@job("work", overlap="allow")
def work(run, n: int = 0):
    pass


@job("fast", ledger=False)
def fast(run):
    pass


@pytest.fixture
def service(serve):
    return serve(work, fast)


@pytest.fixture
def autocommit(database):
    with databases.autocommit(database) as connection:
        yield connection


@pytest.fixture
def request_many(database):
    def request_many(count, keys=(), last="other"):
        """Request runs with these keys in turn, and then one run with the key ``last``."""
        keys = list(itertools.islice(itertools.cycle(keys or [""]), count - 1))
        with Session(database) as session:
            ids = enqueue_many(session, "work", [{}] * count, keys=[*keys, last])
            session.commit()
        return ids

    return request_many


@pytest.fixture
def fixed(monkeypatch):
    """Return windows of this size, which do not change."""
    monkeypatch.setattr(windows, "SAMPLE_SECONDS", float("inf"))
    return Windows


def unsent(ledger):
    return [row.id for row in ledger.rows("SELECT id FROM rota_runs WHERE sent_at IS NULL ORDER BY id")]


def test_what_is_too_much_waits_in_the_ledger_again(service, autocommit, ledger, request_many, fixed, caplog):
    caplog.set_level("INFO")
    ids = request_many(1300)

    assert recall(autocommit, service.carrier, fixed(100), QUEUES, JOBS) == 1200

    assert service.waiting() == 100
    assert unsent(ledger) == ids[100:]
    assert emitted(caplog, "dispatcher.recalled") == [DispatcherRecalled("default", 1200)]
    assert recall(autocommit, service.carrier, fixed(100), QUEUES, JOBS) == 0
    assert service.redis.hlen("dramatiq:default.msgs") == 100


@pytest.mark.parametrize(
    ("keys", "last"), [([], ""), (["a", "b"], "a"), ([str(number) for number in range(400)], "other")]
)
def test_messages_stay_where_nobody_is_delayed_more_than_others(
    service, autocommit, ledger, request_many, fixed, keys, last
):
    request_many(400, keys, last)

    assert recall(autocommit, service.carrier, fixed(100), QUEUES, JOBS) == 0
    assert unsent(ledger) == []


def test_a_run_with_another_key_gets_its_turn(service, autocommit, request_many, fixed):
    other = request_many(1000, ["many"])[-1]
    sizes = fixed(10)
    recall(autocommit, service.carrier, sizes, QUEUES, JOBS)
    service.broker.redis_queues.fetch("default", 10)

    send_due(autocommit, ["work"], service.carrier, Sharing(windows=sizes))

    assert other in service.carrier.oldest_runs("default")[1]


def test_so_does_one_that_waits_in_the_ledger(service, autocommit, database, request_many, fixed):
    request_many(100, ["many"], "many")
    assert recall(autocommit, service.carrier, fixed(10), QUEUES, JOBS) == 0
    with Session(database) as session:
        enqueue(session, "work", key="other", delay=timedelta(microseconds=1))
        session.commit()

    assert recall(autocommit, service.carrier, fixed(10), QUEUES, JOBS) == 90


def test_messages_of_the_fast_lane_stay(service, autocommit, database, request_many, fixed):
    with Session(database) as session:
        for number in range(50):
            send(session, "fast")
            enqueue(session, "work", key="few" if number == 49 else "")
        session.commit()

    assert recall(autocommit, service.carrier, fixed(10), QUEUES, JOBS) == 40

    assert service.waiting() == 60


def test_a_run_that_somebody_has_locked_is_sent_again_as_a_lost_one(
    service, autocommit, database, ledger, request_many, fixed
):
    ids = request_many(100)
    with database.begin() as connection:
        connection.exec_driver_sql(f"SELECT 1 FROM rota_runs WHERE id = {ids[-1]} FOR UPDATE")
        recall(autocommit, service.carrier, fixed(16), QUEUES, JOBS)

        assert unsent(ledger) == ids[16:-1]


def test_no_run_is_lost_or_doubled_while_workers_fetch(service, autocommit, ledger, request_many, fixed):
    ids = request_many(1200)
    fetched, is_over = [], threading.Event()

    def fetch():
        while not is_over.is_set():
            fetched.extend(service.broker.redis_queues.fetch("default", 1))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        recalled = recall(autocommit, service.carrier, fixed(10), QUEUES, JOBS)
        eventually(lambda: not service.waiting())
    finally:
        is_over.set()
        for thread in threads:
            thread.join()

    assert recalled > 0
    assert None not in fetched
    assert len(fetched) + len(unsent(ledger)) == len(ids)
    assert service.carrier.flows(QUEUES) == [Flow(0, len(fetched))]


def test_a_queue_whose_workers_are_slow_is_found_too_long(service, autocommit, request_many, monkeypatch):
    monkeypatch.setattr(windows, "SAMPLE_SECONDS", 0.0)
    clock = itertools.count()
    monkeypatch.setattr(windows.time, "monotonic", lambda: float(next(clock)))
    request_many(1000)
    sizes = Windows()
    excess = []
    for _ in range(20):
        service.broker.redis_queues.fetch("default", 2)
        excess.append(sizes.excess(service.carrier, QUEUES).get("default", 0))

    assert excess[0] == 0
    assert excess[-1] == 1000 - 40 - LEAST
