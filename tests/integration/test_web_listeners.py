"""Listening on a Unix socket: who can connect, whose address counts, and which files are replaced."""

import socket
import stat
import threading
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from core import job
from core.cli import main
from core.cli.web import Connection
from core.errors import RotaError
from core.observability.events import WebRefused
from core.operations import web_address
from core.plugins import loading
from core.settings import load
from core.web import app, listeners, server, service
from tests.support.eventually import PATIENCE_SECONDS
from tests.support.service import free_port


@job("work", queue="default")
def work(run):
    """Work."""


@pytest.fixture(autouse=True)
def installed(use_jobs, database):
    use_jobs(work)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROTA_WEB_SOCKET", "web.sock")
    return tmp_path / "web.sock"


@contextmanager
def listening():
    """Serve HTTP as the settings say, and yield the settings."""
    configured = load()
    with service.opened(configured, loading.current()) as parts, listeners.opened(configured) as listener:
        serving = server.Server(server.config(app.surrounded(app.make(parts), parts)), parts.stopping)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield configured
        finally:
            serving.should_exit = True
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


def status(configured, address="192.0.2.7"):
    connection = Connection(configured)
    connection.request("GET", "/api/v1/me", headers={"X-Forwarded-For": address})
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def addresses(caplog):
    return [record.msg.address for record in caplog.records if isinstance(record.msg, WebRefused)]


@pytest.mark.parametrize(("proxies", "address"), [("unix", "192.0.2.7"), ("192.0.2.0/24", ""), ("", "")])
def test_a_unix_socket_is_for_its_owner_and_group_and_the_address_is_a_trusted_proxys(
    path, monkeypatch, caplog, proxies, address
):
    monkeypatch.setenv("ROTA_WEB_PROXIES", proxies)
    with listening() as configured:
        assert stat.filemode(path.stat().st_mode) == "srw-rw----"
        assert status(configured) == 401
        answered = CliRunner().invoke(main, ["web", "--check"])
        assert (answered.exit_code, answered.output) == (0, "unix:web.sock answers\n")

    assert addresses(caplog) == [address]
    assert not path.exists()
    assert "unix:web.sock does not answer" in CliRunner().invoke(main, ["web", "--check"]).output


def test_a_port_answers_as_before(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROTA_WEB_PORT", str(free_port()))
    with listening():
        answered = CliRunner().invoke(main, ["web", "--check"])
        assert answered.exit_code == 0
        assert "http://127.0.0.1:" in answered.output


def test_the_file_of_a_killed_process_is_replaced_and_no_other(path):
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with listeners.opened(load()), pytest.raises(RotaError, match=r"another process listens on web\.sock"):
        listeners.on_path(load().web_socket)

    path.write_text("mine")
    with pytest.raises(RotaError, match=r"web\.sock exists, and is not a socket; set ROTA_WEB_SOCKET"):
        listeners.on_path(load().web_socket)
    assert path.read_text() == "mine"


def test_a_socket_that_cannot_be_asked_is_left_alone(path):
    """It cannot be asked either if it belongs to another user: the answer is then another error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))

        with pytest.raises(RotaError, match=r"cannot listen on web\.sock: Protocol wrong type.*; set ROTA_WEB_SOCKET"):
            listeners.on_path(load().web_socket)

        assert path.exists()


def test_the_socket_of_a_later_process_is_left_alone(path):
    with listeners.opened(load()) as first:
        first.close()
        later = listeners.on_path(path)

    assert path.exists()
    later.close()


@pytest.mark.parametrize("wrong", ["missing/web.sock", "x" * 200])
def test_a_path_that_cannot_be_used_is_named(path, monkeypatch, wrong):
    monkeypatch.setenv("ROTA_WEB_SOCKET", wrong)

    with pytest.raises(RotaError, match=f"cannot listen on {wrong}: .*; set ROTA_WEB_SOCKET"):
        listeners.on_path(load().web_socket)


def test_a_link_to_log_in_needs_the_address_of_the_proxy(path, monkeypatch, ledger):
    told = CliRunner().invoke(main, ["tokens", "link"])
    assert (told.exit_code, told.stderr) == (
        1,
        "rota: browsers cannot use ROTA_WEB_SOCKET; set ROTA_WEB_URL to the address of the proxy\n",
    )
    assert ledger.value("SELECT count(*) FROM rota_credentials") == 0

    monkeypatch.setenv("ROTA_WEB_URL", "https://ops.example.org/rota")
    monkeypatch.setenv("ROTA_WEB_PREFIX", "/rota")
    link = CliRunner().invoke(main, ["tokens", "link"]).stdout
    assert link.startswith("https://ops.example.org/rota/login?link=rota_link_")


def test_a_socket_cannot_be_reached_from_other_machines(path, monkeypatch):
    monkeypatch.setenv("ROTA_WEB_HOST", "0.0.0.0")

    assert web_address.is_local(load())
