"""``/metrics`` over HTTP: the process that Dramatiq forks serves the metrics of all processes of a worker."""

import http.client
import os
import socket
import stat
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from core.observability.metric_files import tidy
from core.settings import Settings
from tests.support.emitted import logged
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
SERVE = "from core.worker.metrics_port import serve; serve()"
#: A worker process that writes metrics, and then waits until its input ends.
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
    """Yield a Python process that runs ``source``. It is killed in the end."""
    process = subprocess.Popen([sys.executable, "-c", source], env=environ, cwd=ROOT, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def worker(environ):
    """Yield a process that has written metrics and is alive."""
    with program(WORK, environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        yield process


@pytest.fixture
def server(environ):
    """Yield the server when it answers."""
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
    """Send bytes and close the sending side. Return the beginning of the answer."""
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
    with closing(socket.create_connection(("127.0.0.1", int(environ["ROTA_METRICS_PORT"])))):  # sends nothing
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
    (serving,) = logged(log.read_text(), "metrics.serving")
    assert (serving["port"], serving["level"]) == (int(environ["ROTA_METRICS_PORT"]), "info")


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


#: A program that counts in many series, so that the file grows, and prints the result.
COUNT_MUCH = """
import os, pathlib, resource, sys
from core.observability import logs, metrics
logs.configure("json")
if sys.argv[1:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
metrics.share(pathlib.Path(os.environ["ROTA_METRICS_DIR"]))
for number in range(1000):
    metrics.run_ended(f"job-{number}", "succeeded")
    metrics.leading(True)
print("worked", flush=True)
"""


def count_much(environ, *before, room=""):
    command = [*before, sys.executable, "-c", COUNT_MUCH, *([str(room)] if room else [])]
    return subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("room", [1000, 70_000], ids=["none at all", "for the first page"])
def test_without_room_for_the_metrics_the_work_goes_on_and_it_is_said_once(environ, room):
    done = count_much(environ, room=room)

    assert (done.returncode, done.stdout) == (0, "worked\n")
    assert done.stderr.count("metrics.given_up") == 1
    assert not list(Path(environ["ROTA_METRICS_DIR"]).glob("counter_*.db")), "nothing stands there for ever"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("size", ["4k", "72k"])
def test_on_a_full_file_system_the_work_goes_on(environ, size):
    """If the pages of the file were not allocated before, SIGBUS would end the process."""
    Path(environ["ROTA_METRICS_DIR"]).mkdir()
    mounted = f'mount -t tmpfs -o size={size} none "$ROTA_METRICS_DIR" && exec "$@"'

    done = count_much(environ, "unshare", "--mount", "sh", "-c", mounted, "sh")

    assert (done.returncode, done.stdout) == (0, "worked\n")
    assert done.stderr.count("metrics.given_up") == 1


def test_with_room_many_series_are_all_served(environ, server):
    assert count_much(environ).stdout == "worked\n"

    _, text = get(environ, "/metrics")

    assert text.count('scheduled_task_total{status="succeeded",task="job-') == 1000


def shared_by_default(environ, tmp_path):
    """Return the default folder in which two processes of one parent share their metrics."""
    environ = {name: value for name, value in environ.items() if name != "ROTA_METRICS_DIR"}
    source = (
        "from core.observability import metrics as m; import os; print(m.share(None), os.environ.get(m.MULTIPROCESS))"
    )
    command = [sys.executable, "-c", source]
    environ["TMPDIR"] = str(tmp_path)
    told = [
        subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2)
    ]
    assert told[0].stdout == told[1].stdout
    return told[0].stdout.split(), told[0].stderr


class TestTheTemporaryFolder:
    def test_holds_a_private_one_and_none_of_parents_that_have_ended(self, environ, tmp_path):
        ours = tmp_path / f"rota-metrics-{os.geteuid()}"
        (ours / "999999999-1").mkdir(parents=True)
        (ours / "notes").mkdir()
        ours.chmod(0o700)

        (shared, folder), _ = shared_by_default(environ, tmp_path)

        assert shared == "True"
        assert Path(folder).parent == ours
        assert [stat.S_IMODE(path.stat().st_mode) for path in (ours, Path(folder))] == [0o700, 0o700]
        assert {path.name for path in ours.iterdir()} == {"notes", Path(folder).name}

    @pytest.mark.parametrize("kind", ["link", "file", "open to others", "another user's"])
    def test_may_hold_what_others_have_put_there(self, environ, tmp_path, kind):
        """Another user's folder or symlink of that name is not used, and does not stop work."""
        ours = tmp_path / f"rota-metrics-{os.geteuid()}"
        (tmp_path / f"rota-metrics-{os.geteuid()}-x").mkdir()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        if kind == "link":
            ours.symlink_to(elsewhere)
        elif kind == "file":
            ours.touch()
        else:
            ours.mkdir(mode=0o700)
            if kind == "open to others":
                ours.chmod(0o777)
            elif os.geteuid() == 0:
                os.chown(ours, 65534, 65534)
            else:
                pytest.skip("only root can make another user's folder")

        told, log = shared_by_default(environ, tmp_path)

        assert told == ["False", "None"]
        assert "metrics.given_up" in log
        assert not list(elsewhere.iterdir())

    def test_a_file_that_is_a_link_is_not_followed(self, tmp_path):
        from core.observability import metric_values  # only after a test has set the folder of the metrics

        secret, link = tmp_path / "secret", tmp_path / "counter_1.db"
        secret.write_text("mine")
        link.symlink_to(secret)

        with pytest.raises(OSError, match="symbolic link"):
            metric_values.open_allocated(link)

        assert secret.read_text() == "mine"


def test_without_a_folder_to_share_the_server_says_so(environ, tmp_path):
    taken = tmp_path / "taken"
    taken.touch()
    environ["ROTA_METRICS_DIR"] = str(taken)
    with program(SERVE, environ, stderr=subprocess.DEVNULL):
        told = eventually(lambda: status_of(environ), within=20)

    assert told == 503


def status_of(environ):
    try:
        return get(environ, "/metrics")[0]
    except OSError:
        return None


def test_a_developers_metrics_are_served_to_this_machine_alone():
    assert Settings.model_fields["metrics_host"].default == "127.0.0.1"
