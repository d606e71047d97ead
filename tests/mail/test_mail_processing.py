"""``process-email``: each message is processed once, and a broken message neither blocks other messages nor is lost."""

from datetime import UTC

import pytest
from sqlalchemy import Engine, delete, text
from sqlalchemy.orm import Session
from stored_mail import NOON

from core import Run, enqueue, job
from core.plugins import loading
from plugins.mail import processing
from plugins.mail.jobs import process_email
from plugins.mail.models import Content, Message
from plugins.mail.parsing import parse
from plugins.mail.settings import MailSettings

ODD = """From: =?utf-8?q?Zo=C3=AB?= <zoe@example.com>
To: desk@example.com
Subject: the bill
Date: Tue, 3 Mar 2026 11:00:00 +0000
In-Reply-To: <0@example.com>
References: <0@example.com>
Auto-Submitted: auto-replied
Content-Type: multipart/mixed; boundary=b

--b

see there
--b
Content-Type: application/pdf
Content-Disposition: attachment; filename="../bill.pdf"

x
--b--
"""


@pytest.fixture
def account(stored_mail) -> int:
    return stored_mail.account()


def process(run_job, message_id: int):
    return run_job(process_email, key=str(message_id), args={"message_id": message_id}, now=NOON)


def test_what_was_read_of_a_message_is_recorded(stored_mail, run_job, account):
    message_id = stored_mail.message(account, 1, ODD.encode())

    run = process(run_job, message_id)

    assert (run.state, run.result) == ("succeeded", {"processed": 1, "automatic": 1})
    found = stored_mail.find(Content, message_id)
    assert (found.sender_name, found.sender, found.subject, found.text) == (
        "Zoë", "zoe@example.com", "the bill", "see there",
    )  # fmt: skip
    assert found.recipients == {"to": [{"name": "", "address": "desk@example.com"}], "cc": [], "reply_to": []}
    assert (found.in_reply_to, found.reference_ids) == ("<0@example.com>", ["<0@example.com>"])
    assert found.sent_at.astimezone(UTC).hour == 11
    assert [each["name"] for each in found.attachments] == ["bill.pdf"]
    assert (found.automatic, found.problems) == ("auto-submitted: auto-replied", [])
    assert stored_mail.find(Message, message_id).state == "processed"
    assert len(stored_mail.keys()) == 1


def test_a_message_from_the_mailbox_itself_is_automatic(stored_mail, run_job, account):
    message_id = stored_mail.message(account, 1, b"From: DESK@example.com\r\n\r\n")

    process(run_job, message_id)

    assert stored_mail.find(Content, message_id).automatic == "sent from this mailbox"


def test_a_message_that_is_processed_is_left_alone(stored_mail, run_job, account):
    message_id = stored_mail.message(account, 1)
    process(run_job, message_id)

    assert process(run_job, message_id).result == {"processed": 0}
    assert stored_mail.contents() == [message_id]


def test_a_message_that_is_deleted_while_it_is_read_leaves_nothing(stored_mail, run_job, account, monkeypatch):
    message_id = stored_mail.message(account, 1)

    def read(*arguments, **options):
        with stored_mail.engine.begin() as connection:
            connection.execute(delete(Message).where(Message.id == message_id))
        return parse(*arguments, **options)

    monkeypatch.setattr(processing, "parse", read)

    assert process(run_job, message_id).result == {"processed": 0, "automatic": 0}
    assert stored_mail.contents() == []


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"Subject: =?zlib?b?eJw=?=\r\n\r\n\0", bytes(range(256)) * 100])
def test_a_broken_message_is_processed_like_any_other(stored_mail, run_job, account, content):
    message_id = stored_mail.message(account, 1, content)

    assert process(run_job, message_id).state == "succeeded"


def test_a_message_without_its_object_becomes_unreadable_after_three_retries(stored_mail, executor, run_job, account):
    message_id = stored_mail.message(account, 1, content=None)
    run_id = run_job.request(process_email, key=str(message_id), args={"message_id": message_id})

    states = []
    for _ in range(processing.ATTEMPTS):
        make_due(executor.engine)
        executor.execute(process_email, run_id)
        states.append((run_job.row(run_id).state, stored_mail.find(Message, message_id).state))

    assert states == [("retrying", "stored")] * 3 + [("succeeded", "unreadable")]
    assert "has no object" in stored_mail.find(Message, message_id).error


def test_a_message_that_cannot_be_recorded_becomes_unreadable_and_keeps_its_object(
    stored_mail, executor, run_job, account
):
    """Whatever the reason: here a constraint that the message violates."""
    message_id = stored_mail.message(account, 1)
    with stored_mail.engine.begin() as connection:
        connection.execute(text("ALTER TABLE mail_contents ADD CONSTRAINT odd CHECK (subject <> 'hello')"))
    try:
        run_id = run_job.request(process_email, key=str(message_id), args={"message_id": message_id})
        for _ in range(processing.ATTEMPTS):
            make_due(executor.engine)
            executor.execute(process_email, run_id)

        assert run_job.row(run_id).result == {"unreadable": 1}
        assert stored_mail.find(Message, message_id).state == "unreadable"
        assert len(stored_mail.keys()) == 1
    finally:
        with stored_mail.engine.begin() as connection:
            connection.execute(text("ALTER TABLE mail_contents DROP CONSTRAINT odd"))


def make_due(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE rota_runs SET due_at = now() - interval '1 second' WHERE state = 'retrying'"))


def test_a_message_that_ends_the_process_is_not_tried_for_ever(stored_mail, run_job, account):
    message_id = stored_mail.message(account, 1, readings=processing.ATTEMPTS)

    assert process(run_job, message_id).result == {"unreadable": 1}
    assert stored_mail.find(Message, message_id).error == "each attempt ended the process"


def test_an_attempt_is_counted_before_the_message_is_read(stored_mail, run_job, account, monkeypatch):
    message_id = stored_mail.message(account, 1)
    seen = []

    def read(*arguments, **options):
        seen.append(stored_mail.find(Message, message_id).readings)
        raise ValueError("this one ends badly")

    monkeypatch.setattr(processing, "parse", read)

    assert process(run_job, message_id).state == "retrying"
    assert seen == [1]
    assert stored_mail.find(Message, message_id).readings == 1


def test_while_the_store_is_away_a_message_waits_and_no_attempt_counts(stored_mail, run_job, account):
    message_id = stored_mail.message(account, 1)
    stored_mail.store.root.rename(stored_mail.store.root.with_name("unmounted"))

    run = process(run_job, message_id)

    assert (run.state, run.reason, run.failures) == ("retrying", "later", 0)
    message = stored_mail.find(Message, message_id)
    assert (message.state, message.readings) == ("stored", 0)


def test_no_transaction_is_open_while_the_store_is_read(stored_mail, run_job, account):
    message_id = stored_mail.message(account, 1)
    path = stored_mail.store.root / stored_mail.keys()[0]
    seen = []

    def look(*arguments, **options):
        with stored_mail.engine.connect() as connection:
            seen.append(connection.scalar(text("""
                SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                AND state LIKE 'idle in transaction%'
            """)))  # fmt: skip
        return real(*arguments, **options)

    assert path.exists()
    real = type(stored_mail.store).open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(stored_mail.store), "open", look)
        assert process(run_job, message_id).result["processed"] == 1

    assert seen == [0]


class TestAnotherPlugin:
    """A second plugin with a job that processes messages further, and with a table of its own."""

    @pytest.fixture
    def open_ticket(self, database, use_jobs, monkeypatch):
        monkeypatch.setenv("ROTA_MAIL_NEXT_JOBS", "open-ticket")
        MailSettings.forget()
        with database.begin() as connection:
            connection.execute(text("CREATE TABLE tickets (message_id bigint PRIMARY KEY, title text)"))
        use_jobs(process_email, open_ticket)
        yield open_ticket
        with database.begin() as connection:
            connection.execute(text("DROP TABLE tickets"))

    def tickets(self, engine: Engine) -> list[tuple[int, str]]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text("SELECT message_id, title FROM tickets"))]

    def runs(self, engine: Engine) -> list[tuple[int, str]]:
        with engine.connect() as connection:
            found = connection.execute(text("SELECT id, key FROM rota_runs WHERE job = 'open-ticket'"))
            return [tuple(row) for row in found]

    def test_takes_each_processed_message_further_once(self, stored_mail, executor, run_job, account, open_ticket):
        message_id = stored_mail.message(account, 1)

        process(run_job, message_id)
        process(run_job, message_id)
        ((run_id, key),) = self.runs(stored_mail.engine)
        executor.execute(open_ticket, run_id)

        assert key == str(message_id)
        assert self.tickets(stored_mail.engine) == [(message_id, "hello")]

    def test_is_asked_for_in_the_transaction_that_processes_the_message(
        self, stored_mail, run_job, account, open_ticket, monkeypatch
    ):
        message_id = stored_mail.message(account, 1)
        monkeypatch.setenv("ROTA_MAIL_NEXT_JOBS", "open-ticket, nobody-has-this")
        MailSettings.forget()

        run = process(run_job, message_id)

        assert (run.state, run.reason, run.failures) == ("retrying", "later", 0)
        message = stored_mail.find(Message, message_id)
        assert (message.state, message.readings) == ("stored", 0)
        assert stored_mail.contents() == []
        assert self.runs(stored_mail.engine) == []

    def test_is_waited_for_if_it_is_not_installed(self, stored_mail, executor, run_job, account, use_jobs, monkeypatch):
        monkeypatch.setenv("ROTA_MAIL_NEXT_JOBS", "open-ticket")
        MailSettings.forget()
        message_id = stored_mail.message(account, 1)

        run = process(run_job, message_id)
        assert run.reason == "later"
        assert "unknown job 'open-ticket'" in run.error
        use_jobs(process_email, open_ticket)
        make_due(stored_mail.engine)
        executor.execute(process_email, run.id)

        assert run_job.row(run.id).result["processed"] == 1
        assert len(self.runs(stored_mail.engine)) == 1


@job("open-ticket", queue="tickets")
def open_ticket(run: Run, message_id: int) -> None:
    """Open a ticket for a message."""
    subject = run.session.scalar(text("SELECT subject FROM mail_contents WHERE message_id = :id"), {"id": message_id})
    run.session.execute(text("INSERT INTO tickets VALUES (:id, :title)"), {"id": message_id, "title": subject})


def test_a_request_for_a_message_that_is_gone_ends_as_an_orphan(stored_mail, run_job, account, executor):
    assert loading.current().job("process-email").subject is not None
    with Session(stored_mail.engine) as session, session.begin():
        run_id = enqueue(session, "process-email", key="12345", args={"message_id": 12345})

    executor.execute(process_email, run_id)

    assert run_job.row(run_id).state == "orphaned"
