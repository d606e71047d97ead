"""Polling against pymap, an IMAP server from a Python package that was not written for these tests."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from imapclient import IMAPClient
from mail_world import Mailroom

from tests.support.eventually import eventually
from tests.support.imap_server import mail

PYMAP = [sys.executable, "-c", "from pymap.main import main; main()"]
DEMO = {"username": "demouser", "secret": "demo", "tls": "none"}
#: The number of messages that the inbox of the demonstration has at the start.
THERE = 4


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Yield the port of a server with one user and a few messages."""
    number = free_port()
    with (tmp_path / "pymap.log").open("wb") as log:
        command = [*PYMAP, "--no-tls", "--host", "127.0.0.1", "--port", str(number), "dict", "--demo-data"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        eventually(lambda: answers(number), within=30)
        yield number
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def client(port: int) -> Iterator[IMAPClient]:
    """Yield another client of the same mailbox."""
    with IMAPClient("127.0.0.1", port, ssl=False) as client:
        client.login("demouser", "demopass")
        client.select_folder("INBOX")
        yield client


@pytest.fixture
def account_id(mailroom: Mailroom, port: int) -> int:
    (mailroom.folder / "secrets" / "demo").write_text("demopass")
    return mailroom.add(port=port, **DEMO)


def test_new_messages_are_stored_once_as_the_server_has_them(mailroom: Mailroom, account_id, client):
    first = mailroom.poll(account_id)
    client.append("INBOX", mail(77))

    second, third = mailroom.poll(account_id), mailroom.poll(account_id)

    assert (first.result["stored"], second.result["stored"], third.result) == (THERE, 1, None)
    uids = client.search()
    bodies = client.fetch(uids, ["BODY.PEEK[]", "RFC822.SIZE", "INTERNALDATE"])
    stored = mailroom.messages()
    assert [each.uid for each in stored] == uids
    assert [mailroom.objects()[str(each.storage_key)] for each in stored] == [bodies[uid][b"BODY[]"] for uid in uids]


def test_no_flag_is_changed(mailroom: Mailroom, account_id, client):
    before = client.get_flags(client.search())

    mailroom.poll(account_id)

    client.noop()
    assert client.get_flags(client.search()) == before
    assert not all(b"\\Seen" in flags for flags in before.values())


def test_messages_that_others_delete_are_no_trouble(mailroom: Mailroom, account_id, client, configure):
    configure(messages_per_run="2")
    assert mailroom.poll(account_id).result["stored"] == 2
    client.delete_messages(client.search()[2:3])
    client.expunge()

    assert mailroom.follow(account_id).result["stored"] == 1

    assert len(mailroom.messages()) == THERE - 1


def test_a_wrong_password_is_refused(mailroom: Mailroom, account_id):
    (mailroom.folder / "secrets" / "demo").write_text("open sesame")

    run = mailroom.poll(account_id)

    assert (run.state, "LoginRefused" in run.error) == ("retrying", True)
    assert mailroom.account(account_id).auth_failures == 1


def test_a_large_message_is_fetched_in_pieces(mailroom: Mailroom, account_id, client):
    mailroom.poll(account_id)
    client.append("INBOX", mail(5, 3 * 1024 * 1024 + 7))

    mailroom.poll(account_id)

    assert mail(5, 3 * 1024 * 1024 + 7) in mailroom.objects().values()


def test_a_folder_of_another_name_is_found(mailroom: Mailroom, account_id, client, port):
    client.create_folder("Entwürfe")
    client.append("Entwürfe", mail(9))

    other = mailroom.add("drafts", port=port, folder="Entwürfe", **DEMO)

    assert mailroom.poll(other).result["stored"] == 1
