"""The parts that Dramatiq's tests need and its source distribution leaves out: a broker, a worker, and the code that
runs one.
"""

import os
from contextlib import contextmanager

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.middleware import default_middleware

from core.transport.redis import RotaBroker, connect


@pytest.fixture
def redis_broker():
    """Our broker, with Dramatiq's middleware."""
    broker = RotaBroker(connect(os.environ["REDIS_URL"]), middleware=[make() for make in default_middleware])
    broker.client.flushall()
    broker.emit_after("process_boot")
    dramatiq.set_broker(broker)
    yield broker
    broker.client.flushall()
    broker.close()


@contextmanager
def worker(*args, **kwargs):
    """A worker at work."""
    running = Worker(*args, **kwargs)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def redis_worker(redis_broker):
    """A worker with many threads."""
    with worker(redis_broker, worker_timeout=100, worker_threads=32) as running:
        yield running
