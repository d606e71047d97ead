"""Polls that fail: each cause has an error text of its own, and the right consequence: a back-off, a pause, or a
failure.
"""

import logging
import socket
import threading
import tracemalloc

import pytest
from mail_world import Mailroom
from sqlalchemy import text

from core import schedules
from plugins.mail import change_account, resume_account
from tests.support.imap_server import Hangup, certificate, mail, serving

BUSY = [
    "NO [LIMIT] Too many connections",
    "NO [UNAVAILABLE] try again later",
    "NO [INUSE] locked by another",
    "NO [OVERQUOTA] Account exceeded command or bandwidth limits",
    "NO [ALERT] Too many simultaneous connections",
]
REFUSED = [
    "NO [AUTHENTICATIONFAILED] Invalid credentials",
    "NO [AUTHORIZATIONFAILED] not for you",
    "NO [EXPIRED] password expired, try again with a new one",
    "NO LOGIN failed.",
]


def answering(command: str, answer: str):
    """Return a script of a server that answers one command in this way."""
    return lambda given, _: f"TAG {answer}\r\n".encode() if given == command else None


def paused(mailroom: Mailroom) -> list[str | None]:
    """Return the reasons of the paused schedules."""
    mailroom.session.rollback()
    return [each.pause_reason for each in schedules(mailroom.session, "poll-mailbox") if each.paused_at is not None]


@pytest.mark.parametrize("answer", REFUSED)
def test_a_refused_log_in_is_tried_three_times_and_then_waits_for_a_person(mailroom: Mailroom, answer):
    mailroom.server.script = answering("LOGIN", answer)
    account_id = mailroom.add()

    run = mailroom.poll(account_id)
    assert run.state == "retrying"
    assert paused(mailroom) == []
    run = mailroom.again(run)
    assert run.state == "retrying"
    run = mailroom.again(run)

    assert (run.state, run.reason) == ("dead", "no retry")
    assert "has refused the log-in: " in run.error
    assert "`rota mail resume`" in run.error
    account = mailroom.account(account_id)
    assert (account.state, account.auth_failures) == ("auth_failed", 3)
    assert paused(mailroom) == [account.reason]
    assert mailroom.poll(account_id).result == {"skipped": "auth_failed"}
    assert mailroom.server.commands.count("LOGIN") == 3


def test_new_credentials_resume_an_account_whose_log_in_was_refused(mailroom: Mailroom):
    account_id = mailroom.add(secret="wrong")
    (mailroom.folder / "secrets" / "wrong").write_text("open")
    run = mailroom.poll(account_id)
    mailroom.again(mailroom.again(run))
    assert mailroom.account(account_id).state == "auth_failed"

    assert change_account(mailroom.session, account_id, secret="ann")
    mailroom.session.commit()

    assert (mailroom.account(account_id).state, paused(mailroom)) == ("active", [])
    assert mailroom.follow(account_id).state == "succeeded"


def test_a_log_in_that_succeeds_forgets_those_that_were_refused(mailroom: Mailroom):
    account_id = mailroom.add()
    mailroom.server.users["ann"] = "another"
    run = mailroom.again(mailroom.poll(account_id))
    assert mailroom.account(account_id).auth_failures == 2
    mailroom.server.users["ann"] = "sesame"

    assert mailroom.again(run).state == "succeeded"

    assert mailroom.account(account_id).auth_failures == 0


@pytest.mark.parametrize("answer", BUSY)
@pytest.mark.parametrize("command", ["LOGIN", "EXAMINE"])
def test_a_busy_server_is_left_alone_for_longer_and_longer(mailroom: Mailroom, command, answer):
    mailroom.server.script = answering(command, answer)
    account_id = mailroom.add()

    run = mailroom.poll(account_id)

    assert (run.state, run.result["postponed_seconds"]) == ("succeeded", 60)
    assert answer.partition("] ")[2] in run.result["reason"]
    connections = mailroom.server.connections
    assert mailroom.account(account_id).reason == run.result["reason"]
    assert mailroom.poll(account_id).result == {"skipped": "postponed"}
    assert mailroom.server.connections == connections
    assert pass_time(mailroom, account_id) == 120
    assert [pass_time(mailroom, account_id) for _ in range(6)][-2:] == [3600, 3600]
    assert mailroom.account(account_id).auth_failures == 0


def pass_time(mailroom: Mailroom, account_id: int) -> int:
    """Let the postponement end, and poll. Return the seconds of the next postponement."""
    mailroom.session.execute(text("UPDATE mail_accounts SET postponed_until = now() - interval '1 s'"))
    mailroom.session.commit()
    return mailroom.poll(account_id).result["postponed_seconds"]


def test_a_server_that_is_well_again_is_polled_as_before(mailroom: Mailroom):
    mailroom.server.script = answering("LOGIN", BUSY[0])
    account_id = mailroom.add()
    mailroom.poll(account_id)
    mailroom.server.script = lambda command, arguments: None
    mailroom.session.execute(text("UPDATE mail_accounts SET postponed_until = now() - interval '1 s'"))
    mailroom.session.commit()

    assert mailroom.poll(account_id).result is None

    account = mailroom.account(account_id)
    assert (account.postponements, account.postponed_until, account.reason) == (0, None, None)


def test_a_postponed_account_that_a_person_resumes_is_polled_at_once(mailroom: Mailroom):
    mailroom.server.script = answering("LOGIN", BUSY[0])
    account_id = mailroom.add()
    mailroom.poll(account_id)
    mailroom.server.script = lambda command, arguments: None

    resume_account(mailroom.session, account_id)
    mailroom.session.commit()

    assert mailroom.poll(account_id).result is None


def test_a_server_that_says_bye_is_busy(mailroom: Mailroom):
    mailroom.server.greeting = b"* BYE [UNAVAILABLE] shutting down\r\n"
    account_id = mailroom.add()
    assert mailroom.poll(account_id).result["postponed_seconds"] == 60
    mailroom.server.greeting = b"* OK ready\r\n"

    def bye(command: str, arguments: str) -> None:
        if command == "EXAMINE":
            raise Hangup(b"* BYE session expired\r\n")

    mailroom.server.script = bye
    assert pass_time(mailroom, account_id) == 120


def test_a_lost_connection_is_a_failure_that_backs_off(mailroom: Mailroom):
    def cut(command: str, arguments: str) -> None:
        if command == "EXAMINE":
            raise Hangup

    mailroom.server.script = cut

    run = mailroom.poll(mailroom.add())

    assert (run.state, run.failures) == ("retrying", 1)
    assert run.error.startswith("ConnectionCut: the connection to 127.0.0.1:")


@pytest.mark.parametrize("is_renumbered", [False, True])
def test_a_listing_that_cannot_be_read_is_shown_with_the_account_until_it_can_be_read(
    mailroom: Mailroom, is_renumbered
):
    """No message is charged with the failure. The schedule backs off as after any failure."""
    mailroom.server.inbox.fill(3)
    account_id = mailroom.add()
    if is_renumbered:
        mailroom.poll(account_id)
        mailroom.server.inbox.uidvalidity += 1
    mailroom.server.script = answering("FETCH", "oops\r\n* 2 FETCH (UID 2 RFC822.SIZE {5}\r\nHello and more)")

    run = mailroom.poll(account_id)

    assert (run.state, run.failures) == ("retrying", 1)
    account = mailroom.account(account_id)
    assert (account.state, run.error) == ("active", f"AnswerUnreadable: {account.reason}")
    mailroom.server.script = lambda command, arguments: None
    assert mailroom.again(run).state == "succeeded"
    assert mailroom.account(account_id).reason is None
    assert set(mailroom.states().values()) == {"stored"}


def test_a_secret_that_is_missing_is_shown_with_the_account(mailroom: Mailroom):
    account_id = mailroom.add(secret="bob")

    run = mailroom.poll(account_id)

    assert run.error == f"SecretMissing: {mailroom.account(account_id).reason}"


def test_a_reset_in_the_middle_of_a_message_keeps_what_was_stored_and_goes_on_there(mailroom: Mailroom):
    mailroom.server.inbox.messages = {1: mail(1), 2: mail(2, 2_500_000)}
    cuts = []

    def cut(command: str, arguments: str) -> None:
        if command == "FETCH" and "<1048576." in arguments and not cuts:
            cuts.append(1)
            raise Hangup(b"* 2 FETCH (UID 2 BODY[]<1048576> {1048576}\r\nxxxx")

    mailroom.server.script = cut
    account_id = mailroom.add()
    run = mailroom.poll(account_id)
    assert (run.state, mailroom.states()) == ("retrying", {1: "stored", 2: "failed"})

    run = mailroom.again(run)

    assert mailroom.states() == {1: "stored", 2: "stored"}
    assert sorted(mailroom.objects().values()) == sorted([mail(1), mail(2, 2_500_000)])
    assert len(mailroom.requested("process-email")) == 2


def test_a_server_that_falls_silent_is_given_up(mailroom: Mailroom, configure):
    configure(read_seconds="0.3")
    held = threading.Event()
    mailroom.server.script = lambda command, arguments: held.wait(20) and None if command == "EXAMINE" else None

    run = mailroom.poll(mailroom.add())
    held.set()

    assert run.state == "retrying"
    assert "has sent nothing for too long (ROTA_MAIL_READ_SECONDS)" in run.error


def test_no_transaction_is_open_while_a_server_is_waited_for(mailroom: Mailroom, database):
    mailroom.server.inbox.fill(2)
    seen: list[tuple[str, int]] = []
    idle = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'")

    def look(command: str, arguments: str) -> None:
        with database.connect() as connection:
            seen.append((command, connection.scalar(idle)))

    account_id = mailroom.add()
    mailroom.server.script = look
    mailroom.poll(account_id)

    assert {command for command, _ in seen} >= {"LOGIN", "EXAMINE", "SEARCH", "FETCH", "LOGOUT"}
    assert [each for each in seen if each[1]] == []


class TestSentences:
    def error(self, mailroom: Mailroom, **options) -> str:
        run = mailroom.poll(mailroom.add(**options))
        assert run.state == "retrying"
        return str(run.error)

    def test_a_host_that_does_not_exist(self, mailroom: Mailroom):
        told = self.error(mailroom, host="no-such-host.invalid")

        assert told.startswith("ConnectFailed: the host 'no-such-host.invalid' cannot be found: ")

    def test_a_port_at_which_nobody_listens(self, mailroom: Mailroom):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]

        told = self.error(mailroom, port=port)

        assert told == f"ConnectFailed: 127.0.0.1:{port} cannot be reached: Connection refused"

    def test_a_port_that_speaks_no_tls(self, mailroom: Mailroom):
        told = self.error(mailroom, tls="implicit")

        assert "does not speak TLS from the start: the port and tls='implicit' do not fit" in told

    def test_a_port_that_speaks_tls_when_none_was_asked_for(self, mailroom: Mailroom, tmp_path, configure):
        configure(connect_seconds="0.5")
        with serving(context=certificate(tmp_path, "127.0.0.1").context) as server:
            told = self.error(mailroom, port=server.port)

        assert "has not answered within 0.5 s; if the port speaks TLS from the start, the account needs" in told

    def test_a_server_without_starttls_gets_no_password(self, mailroom: Mailroom):
        told = self.error(mailroom, tls="starttls")

        assert "offers no STARTTLS, so no password was sent" in told
        assert mailroom.server.logins == 0

    @pytest.mark.parametrize("tls", ["implicit", "starttls"])
    def test_a_certificate_of_someone_else(self, mailroom: Mailroom, tmp_path, tls):
        own = certificate(tmp_path, "imap.example.org")
        option = {"implicit": "context", "starttls": "starttls"}[tls]
        with serving(**{option: own.context}) as server:
            unknown = self.error(mailroom, port=server.port, tls=tls)
            other = self.error(mailroom, name="other", port=server.port, tls=tls, folder="x", ca_file=str(own.ca_file))

        assert "is not valid: self-signed certificate; give the host's own name, or the file of its" in unknown
        assert "is not valid: IP address mismatch, certificate is not valid for '127.0.0.1'" in other
        assert server.logins == 0

    @pytest.mark.parametrize("content", [None, "no certificate"])
    def test_a_file_of_a_certificate_authority_that_cannot_be_read(self, mailroom: Mailroom, tmp_path, content):
        path = tmp_path / "ca.pem"
        if content:
            path.write_text(content)

        told = self.error(mailroom, tls="implicit", ca_file=str(path))

        assert f"the file of the certificate authority, {str(path)!r}, cannot be read: " in told

    def test_a_folder_that_is_not_there(self, mailroom: Mailroom):
        told = self.error(mailroom, folder="Imbox")

        assert "FolderMissing: folder 'Imbox' cannot be opened: " in told

    def test_a_server_that_speaks_something_else(self, mailroom: Mailroom):
        mailroom.server.greeting = b"220 smtp.example.org ESMTP\r\n"

        assert "does not speak IMAP: " in self.error(mailroom)

    def test_a_server_that_closes_at_once(self, mailroom: Mailroom):
        mailroom.server.greeting = b""
        mailroom.server.script = lambda command, arguments: None
        with socket.create_server(("127.0.0.1", 0)) as listening:
            closer = threading.Thread(target=lambda: listening.accept()[0].close())
            closer.start()
            told = self.error(mailroom, port=listening.getsockname()[1])
            closer.join(10)

        assert "has closed the connection before its greeting: the port and the account's tls may not fit" in told

    def test_a_secret_that_is_not_there(self, mailroom: Mailroom):
        told = self.error(mailroom, secret="bob")

        assert told.startswith("SecretMissing: there is no secret 'bob'; expected it in the file ")
        assert told.endswith("/secrets/bob (No such file or directory) or the variable MAIL_SECRET_BOB")

    def test_a_store_that_is_not_set(self, mailroom: Mailroom, monkeypatch, configure):
        monkeypatch.delenv("ROTA_MAIL_STORE")
        configure()

        assert "ROTA_MAIL_STORE is not set; expected file:///srv/mail or s3://bucket/prefix" in self.error(mailroom)
        assert mailroom.server.connections == 0


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_an_encrypted_mailbox_with_its_own_authority_is_polled(mailroom: Mailroom, tmp_path, tls):
    own = certificate(tmp_path, "127.0.0.1")
    option = {"implicit": "context", "starttls": "starttls"}[tls]
    with serving(**{option: own.context}) as server:
        server.inbox.fill(2)
        run = mailroom.poll(mailroom.add(port=server.port, tls=tls, ca_file=str(own.ca_file)))

    assert run.result["stored"] == 2


def test_a_password_in_any_alphabet_works(mailroom: Mailroom):
    mailroom.server.users["ann"] = "Schlüssel"
    (mailroom.folder / "secrets" / "ann").write_text("Schlüssel\n")

    assert mailroom.poll(mailroom.add()).state == "succeeded"


def test_a_password_is_in_no_table_error_or_line_of_the_log(mailroom: Mailroom, caplog, configure):
    password = "pa55-word-of-ann"
    (mailroom.folder / "secrets" / "ann").write_text(password)
    mailroom.server.script = lambda command, arguments: (
        f"TAG NO [AUTHENTICATIONFAILED] {arguments}\r\n".encode() if command == "LOGIN" else None
    )
    with caplog.at_level(logging.DEBUG):
        run = mailroom.poll(mailroom.add(username="ann@example.org"))

    assert "has refused the log-in" in run.error
    assert password not in caplog.text + str(run.error)
    assert "ann@example.org" not in caplog.text + str(run.error)
    dumped = mailroom.session.execute(text("SELECT CAST(mail_accounts AS text) FROM mail_accounts")).scalars().all()
    assert password not in str(dumped)


def test_a_store_that_is_away_loses_nothing(mailroom: Mailroom):
    mailroom.server.inbox.fill(2)
    account_id = mailroom.add()
    store = mailroom.folder / "store"
    store.rename(mailroom.folder / "elsewhere")
    run = mailroom.poll(account_id)
    assert (run.state, list(mailroom.messages())) == ("retrying", [])
    (mailroom.folder / "elsewhere").rename(store)

    mailroom.again(run)

    assert mailroom.states() == {1: "stored", 2: "stored"}
    assert len(mailroom.objects()) == 2


def test_a_large_message_takes_little_memory(mailroom: Mailroom):
    size = 31 * 1024 * 1024
    mailroom.server.inbox.messages = {1: mail(1, size)}
    account_id = mailroom.add()

    tracemalloc.start()
    try:
        mailroom.poll(account_id)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [each.size for each in mailroom.messages()] == [size]
    assert peak < 10 * 1024 * 1024, "the server of the test included"
