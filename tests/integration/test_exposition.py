"""``/metrics`` over HTTP, served by the process that Dramatiq forks, for all processes of a worker."""

import http.client
import os
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from core.observability.metric_files import tidy
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
SERVE = "from core.observability.metrics_server import serve; serve()"
#: What a worker process writes, and then lives on until its input ends.
WORK = """
import os, pathlib, sys
from core.observability import metrics
metrics.share(pathlib.Path(os.environ["ROTA_METRICS_DIR"]))
metrics.run_started("close-day", 0.2)
metrics.run_ended("close-day", "succeeded", 1.5)
metrics.message_rejected("default", "corrupt")
metrics.pool(in_use=3, idle=4)
print("written", flush=True)
sys.stdin.read()
"""


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def environ(tmp_path):
    return {
        **os.environ,
        "DATABASE_URL": "postgresql://localhost/none",
        "REDIS_URL": "redis://localhost:1",
        "ROTA_METRICS_HOST": "127.0.0.1",
        "ROTA_METRICS_PORT": str(free_port()),
        "ROTA_METRICS_DIR": str(tmp_path / "metrics"),
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def program(source, environ, **streams):
    """Python running ``source``, killed in the end."""
    process = subprocess.Popen([sys.executable, "-c", source], env=environ, cwd=ROOT, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def worker(environ):
    """A process that has written metrics and lives."""
    with program(WORK, environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        yield process


@pytest.fixture
def server(environ):
    """The server, once it answers."""
    with program(SERVE, environ, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: answers(environ), within=20)
        yield process


def answers(environ):
    try:
        return get(environ, "/metrics")[0] == 200
    except OSError:
        return False


def get(environ, path, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", int(environ["ROTA_METRICS_PORT"]), timeout=10)
    with closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def send_raw(environ, data):
    """Send bytes and give up on the answer."""
    with closing(socket.create_connection(("127.0.0.1", int(environ["ROTA_METRICS_PORT"])), timeout=10)) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(100)


def test_the_promised_metrics_are_there_and_a_dead_processs_gauges_are_not(environ, worker, server):
    status, text = get(environ, "/metrics")

    assert status == 200
    for line in (
        'scheduled_task_total{status="succeeded",task="close-day"} 1.0',
        'scheduled_task_duration_seconds_count{task="close-day"} 1.0',
        'scheduled_task_status{task="close-day"} 1.0',
        'rota_db_pool_connections{state="in_use"} 3.0',
        'rota_db_pool_connections{state="idle"} 4.0',
        'rota_start_lateness_seconds_count{task="close-day"} 1.0',
        'rota_messages_rejected_total{queue="default",reason="corrupt"} 1.0',
    ):
        assert line in text.splitlines()

    worker.communicate()
    assert worker.returncode == 0
    _, text = get(environ, "/metrics?again")

    assert 'scheduled_task_total{status="succeeded",task="close-day"} 1.0' in text.splitlines()
    assert "rota_db_pool_connections{" not in text


def test_hostile_requests_do_no_harm(environ, server):
    assert get(environ, "/")[0] == 404
    assert get(environ, "/metrics/..%2f..%2fetc/passwd")[0] == 404
    assert get(environ, "/" + "x" * 70_000)[0] == 414
    assert get(environ, "/metrics", "POST")[0] == 501
    assert get(environ, "/metrics", "DELETE")[0] == 501
    for garbage in (b"\0" * 1000, b"\xff\xfe\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n", b"\r\n", b""):
        send_raw(environ, garbage)
    with closing(socket.create_connection(("127.0.0.1", int(environ["ROTA_METRICS_PORT"])))):  # says nothing
        assert get(environ, "/metrics")[0] == 200


def test_a_port_that_is_taken_is_said_once_and_asked_for_again(environ, tmp_path, monkeypatch):
    source = (
        "from core.observability import metrics_server; "
        "metrics_server.BIND_AGAIN_SECONDS = 0.05; metrics_server.serve()"
    )
    log = tmp_path / "log"
    with closing(socket.socket()) as taker, log.open("wb") as output:
        taker.bind(("127.0.0.1", int(environ["ROTA_METRICS_PORT"])))
        taker.listen()
        with program(source, environ, stderr=output):
            eventually(lambda: "metrics.not_served" in log.read_text(), within=20)
            taker.close()

            assert eventually(lambda: answers(environ), within=20)
    assert log.read_text().count("metrics.not_served") == 1
    assert "set ROTA_METRICS_PORT to another port, or to 0 for none" in log.read_text()


def test_files_of_dead_processes_are_deleted_and_those_of_living_ones_kept(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    names = [f"gauge_livesum_{pid}.db" for pid in (int(dead.stdout), os.getpid())]
    for name in [*names, "gauge_livesum_x.db"]:
        (tmp_path / name).touch()

    tidy(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {names[1], "gauge_livesum_x.db"}


def test_what_many_dead_processes_have_counted_is_put_together_and_told_as_before(environ, server):
    for _ in range(3):
        with program(WORK, environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.communicate()
    folder = Path(environ["ROTA_METRICS_DIR"])

    told = [get(environ, "/metrics")[1].splitlines() for _ in range(2)]

    assert told[0] == told[1]
    assert 'scheduled_task_total{status="succeeded",task="close-day"} 3.0' in told[0]
    assert 'scheduled_task_duration_seconds_sum{task="close-day"} 4.5' in told[0]
    assert 'scheduled_task_duration_seconds_bucket{le="1.0",task="close-day"} 0.0' in told[0]
    assert 'scheduled_task_duration_seconds_bucket{le="2.5",task="close-day"} 3.0' in told[0]
    assert 'scheduled_task_status{task="close-day"} 1.0' in told[0]
    assert {path.name for path in folder.iterdir()} == {"counter_0.db", "histogram_0.db", "gauge_mostrecent_0.db"}


LEAD = """
import os, pathlib, sys
from core.observability import metrics
metrics.share(pathlib.Path(os.environ["ROTA_METRICS_DIR"]))
metrics.leading(True)
metrics.paused(["queue:mail", "job:close-day"])
metrics.overdue({"close-day": 3, "open-day": 0})
metrics.succeeded_at("close-day", 1000.5)
print("written", flush=True)
sys.stdin.readline()
metrics.paused(["queue:mail"])
print("written", flush=True)
sys.stdin.readline()
metrics.leading(False)
print("written", flush=True)
sys.stdin.read()
"""


def test_what_the_leader_alone_tells_is_taken_back_when_it_no_longer_leads(environ, server):
    def lines():
        return get(environ, "/metrics")[1].splitlines()

    with program(LEAD, environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leader:
        assert leader.stdout.readline() == b"written\n"
        told = lines()
        assert 'rota_paused{scope="queue:mail"} 1.0' in told
        assert 'rota_paused{scope="job:close-day"} 1.0' in told
        assert 'rota_slots_overdue{task="close-day"} 3.0' in told
        assert 'rota_slots_overdue{task="open-day"} 0.0' in told
        assert 'rota_last_success_timestamp_seconds{task="close-day"} 1000.5' in told

        for now_paused in (1.0, 0.0):
            leader.stdin.write(b"go on\n")
            leader.stdin.flush()
            assert leader.stdout.readline() == b"written\n"
            assert f'rota_paused{{scope="queue:mail"}} {now_paused}' in lines()
            assert 'rota_paused{scope="job:close-day"} 0.0' in lines()

        assert 'rota_slots_overdue{task="close-day"} 0.0' in lines()
