"""A hundred mailboxes of a real Dovecot: each message is processed once, even after Dovecot has renumbered a folder."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from core import enqueue
from core.embedded import temporary_folder
from plugins.mail import add_account
from tests.support.dovecot import Dovecot, dovecot
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, fleet

MAILBOXES, MESSAGES = 100, 3


@pytest.fixture
def server() -> Iterator[Dovecot]:
    with temporary_folder("rota-dovecot-") as folder, dovecot(folder) as running:
        yield running


@pytest.mark.timeout(300)
def test_each_message_of_a_hundred_mailboxes_is_stored_and_processed_once(tmp_path, postgres_url, redis_url, server):
    root = tmp_path / "store"
    root.mkdir()
    environ = {"ROTA_MAIL_STORE": f"file://{root}", "ROTA_MAIL_POLLS_PER_HOST": "100", "MAIL_SECRET_ANY": "sesame"}
    for number in range(MAILBOXES):
        deliver(server, number, range(MESSAGES))
    with fleet(tmp_path, postgres_url, redis_url, jobs="none", environ=environ) as service:
        accounts = [add(service, server, number) for number in range(MAILBOXES)]
        service.worker(threads=50)
        eventually(lambda: processed(service) == MAILBOXES * MESSAGES, within=120)

        server.forget_numbers("user7")
        deliver(server, 7, range(MESSAGES, MESSAGES + 2))
        poll(service, accounts[7])
        eventually(lambda: processed(service) == MAILBOXES * MESSAGES + 2, within=60)

        found = service.rows(
            "SELECT account_id, subject FROM mail_messages AS m JOIN mail_contents AS c ON c.message_id = m.id"
        )
        assert Counter(Counter(found).values()) == {1: MAILBOXES * MESSAGES + 2}
        assert {row.state for row in service.runs("poll-mailbox")} == {"succeeded"}
    assert "Error" not in server.log


def deliver(server: Dovecot, number: int, messages: range) -> None:
    """Deliver messages to a user, each with another subject."""
    for message in messages:
        head = f"From: ann@example.com\r\nMessage-ID: <{number}.{message}@example.com>\r\nSubject: {message}\r\n"
        server.deliver(f"user{number}", f"{1_800_000_000 + message}.M1P{number}.host", f"{head}\r\nHello\r\n".encode())


def add(service: Fleet, server: Dovecot, number: int) -> int:
    """Add the account of a user, which is polled at once and then daily."""
    with Session(service.engine) as session, session.begin():
        of: dict[str, Any] = {"host": "127.0.0.1", "port": server.port, "tls": "none", "secret": "any"}
        return add_account(session, f"user{number}", username=f"user{number}", every=timedelta(days=1), **of)


def poll(service: Fleet, account_id: int) -> None:
    """Request a poll."""
    with Session(service.engine) as session, session.begin():
        enqueue(session, "poll-mailbox", key=str(account_id), args={"account_id": account_id, "host": "127.0.0.1"})


def processed(service: Fleet) -> int:
    """Return how many messages were processed."""
    (row,) = service.rows("SELECT count(*) AS count FROM mail_contents")
    return int(row.count)
