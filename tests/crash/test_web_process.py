"""``rota web`` as a real process: its start, the health while servers or processes are frozen, and its stop within a
second.
"""

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress

import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.service import free_port

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

#: The goals are 2 seconds, and 5 until a missing part is named. The machine may be busy with other tests.
ANSWERS_WITHIN, NAMED_WITHIN, STOPS_WITHIN = 2.0, 5.0, 1.0


class Web:
    """A ``rota web`` of a fleet."""

    def __init__(self, fleet, **environ):
        self.port = free_port()
        self.process = fleet.start("rota", "web", ROTA_WEB_PORT=self.port, **environ)
        eventually(self.is_up, within=30)

    def is_up(self):
        assert self.process.poll() is None
        with suppress(OSError):
            return self.get("/health/live")[0] == 200
        return False

    def get(self, path, timeout=20.0):
        """Return the status, the body and the duration of an answer."""
        began = time.monotonic()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        return status, json.loads(body), time.monotonic() - began

    def health(self):
        """Return the health. Check that the answer was in time."""
        status, found, seconds = self.get("/health")
        assert seconds < ANSWERS_WITHIN
        assert (status == 200) == (found["status"] == "healthy")
        return found

    def is_well(self):
        return self.health()["status"] == "healthy"

    def stop(self):
        """Stop it. Return the duration of the stop, and the exit status."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        return time.monotonic() - began, status


@contextmanager
def frozen(pid):
    """Stop a process and its children with SIGSTOP, until the block ends."""
    root = psutil.Process(pid)
    processes = [root, *root.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def named(web, part, within=NAMED_WITHIN):
    """Wait until the health names ``part`` as wrong. Return the reason."""
    return eventually(lambda: web.health().get("reasons", {}).get(part), within=within)


@pytest.fixture
def own_fleet(make_fleet, own_postgres, own_redis):
    return make_fleet(jobs="touch", postgres_url=own_postgres.url, redis_url=own_redis.url)


def test_a_frozen_server_is_named_in_time_and_forgotten_when_it_goes_on(own_fleet, own_postgres, own_redis):
    own_fleet.worker(ROTA_METRICS_PORT=(metrics_port := free_port()))
    own_fleet.scheduler()
    web = Web(own_fleet)
    eventually(web.is_well)

    with frozen(own_redis.pid):
        assert "Redis" in named(web, "redis")
    eventually(web.is_well)

    with frozen(own_postgres.pid), ExitStack() as stack:
        assert "PostgreSQL does not answer" in named(web, "database")
        for _ in range(60):  # the health is answered although many requests wait for PostgreSQL
            waiting = stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            waiting.sendall(b"GET /api/v1/runs HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert web.health()["database"] == "disconnected"
        began = time.monotonic()
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/health", timeout=20)
        assert time.monotonic() - began < ANSWERS_WITHIN
        assert answer.value.code == 503
        seconds, status = web.stop()  # requests hang, and the stop does not wait for them
        assert seconds < STOPS_WITHIN
        assert status == 0

    again = Web(own_fleet)
    eventually(again.is_well)
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/health", timeout=20) as answer:
        assert json.load(answer)["worker"] == "available"


@pytest.mark.parametrize("kind", ["worker", "scheduler"])
def test_a_frozen_process_is_named_in_time(make_fleet, kind):
    fleet = make_fleet(jobs="touch")
    started = {"worker": fleet.worker(), "scheduler": fleet.scheduler()}
    web = Web(fleet)
    eventually(web.is_well)

    fleet.pause(started[kind])
    reason = named(web, kind)
    fleet.wake(started[kind])

    assert f"no {kind} sends heartbeats" in reason
    eventually(web.is_well)
    fleet.kill(started[kind])
    assert f"no {kind} is alive" in named(web, kind)


def test_it_ends_within_a_second_with_connections_open(make_fleet):
    fleet = make_fleet(jobs="touch")
    web = Web(fleet)
    with ExitStack() as stack:
        for sent in (
            b"",
            b"GET /health/live HTTP/1.1\r\n",
            b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
        ):
            stack.enter_context(socket.create_connection(("127.0.0.1", web.port))).sendall(sent)
        assert web.get("/health/live")[0] == 200
        seconds, status = web.stop()

    assert (status, seconds < STOPS_WITHIN) == (0, True), seconds
    assert "web.serving" in fleet.logs()
    assert "web.stopping" in fleet.logs()
    assert fleet.start("rota", "web", "--check", ROTA_WEB_PORT=web.port).wait(30) == 1


def test_an_occupied_port_is_a_clear_error(make_fleet):
    fleet = make_fleet(jobs="touch")
    web = Web(fleet)

    second = fleet.start("rota", "web", ROTA_WEB_PORT=web.port)

    assert second.wait(30) == 1
    assert f"cannot listen on 127.0.0.1, port {web.port}" in fleet.logs()
