"""OAuth2: tokens are encrypted, refreshed by the poll that needs one, and given up when the grant was revoked."""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from mail_world import Mailroom
from sqlalchemy import Engine, make_url, text
from sqlalchemy.orm import Session

from core import database as databases
from core.errors import AttemptLost
from core.worker import interruption
from plugins.mail import change_account
from plugins.mail.encryption import decrypt, encrypt, new_key
from plugins.mail.errors import BadKey, SecretMissing
from plugins.mail.secrets import secret, variable_of
from plugins.mail.tokens import stored
from tests.support.token_server import TokenServer, granting


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with granting() as server:
        yield server


@pytest.fixture
def oauth(mailroom: Mailroom, tokens: TokenServer, configure) -> dict[str, Any]:
    """Return the parts of an account with a refresh token."""
    configure(key=new_key())
    mailroom.server.tokens = {"access-1", "access-2"}
    return {
        "auth": "refresh_token", "token_url": tokens.url, "client_id": "rota", "secret": None,
        "refresh_token": "refresh-1",
    }  # fmt: skip


def test_a_token_is_asked_for_once_and_used_until_it_ends(mailroom: Mailroom, tokens: TokenServer, oauth):
    account_id = mailroom.add(**oauth)

    states = [mailroom.poll(account_id).state for _ in range(3)]

    assert states == ["succeeded"] * 3
    assert tokens.asked == [{"grant_type": "refresh_token", "client_id": "rota", "refresh_token": "refresh-1"}]
    assert mailroom.server.commands.count("AUTHENTICATE") == 3


def test_a_token_that_ends_within_five_minutes_is_replaced(mailroom: Mailroom, tokens: TokenServer, oauth):
    tokens.answer = (200, {"access_token": "access-1", "expires_in": "299"})
    account_id = mailroom.add(**oauth)

    mailroom.poll(account_id)
    mailroom.poll(account_id)

    assert len(tokens.asked) == 2


def test_a_refresh_token_that_rotates_is_kept(mailroom: Mailroom, tokens: TokenServer, oauth):
    tokens.answer = (200, {"access_token": "access-1", "expires_in": 1, "refresh_token": "refresh-2"})
    account_id = mailroom.add(**oauth)

    mailroom.poll(account_id)
    mailroom.poll(account_id)

    assert [asked["refresh_token"] for asked in tokens.asked] == ["refresh-1", "refresh-2"]


def test_a_refresh_token_that_rotates_is_kept_although_the_lease_is_lost(
    mailroom: Mailroom, tokens: TokenServer, oauth, database
):
    tokens.answer = (200, {"access_token": "access-1", "expires_in": 1, "refresh_token": "refresh-2"})
    account_id = mailroom.add(**oauth)

    def lose() -> None:
        with database.begin() as connection:
            connection.execute(text("UPDATE rota_runs SET state = 'retrying', process_id = NULL, token = NULL"))

    tokens.looks = lose
    lost = mailroom.poll(account_id)
    tokens.looks = lambda: None
    mailroom.again(lost)

    assert lost.state == "retrying"
    assert [asked["refresh_token"] for asked in tokens.asked] == ["refresh-1", "refresh-2"]


@pytest.mark.parametrize("cause", [None, AttemptLost])
def test_a_refresh_token_that_rotates_is_kept_although_postgresql_is_away_for_a_while(
    mailroom: Mailroom, tokens: TokenServer, oauth, database, template, cause
):
    """After a restart of PostgreSQL, the attempt is also interrupted, since its lease is lost."""
    tokens.answer = (200, {"access_token": "access-1", "expires_in": 3600, "refresh_token": "refresh-2"})
    account_id = mailroom.add(**oauth)
    back = threading.Timer(1.5, partial(accept_connections, database, template, accept=True))

    def go_away() -> None:
        with database.connect() as connection:
            lease = connection.execute(text("SELECT token FROM rota_runs WHERE state = 'running'")).scalar_one()
        accept_connections(database, template, accept=False)
        back.start()
        assert cause is None or interruption.interrupt([lease], cause) == 1

    tokens.looks = go_away
    run = mailroom.poll(account_id)
    back.join(10)

    assert run.state == ("running" if cause else "succeeded")
    assert tokens.asked == [{"grant_type": "refresh_token", "client_id": "rota", "refresh_token": "refresh-1"}]
    mailroom.session.rollback()
    assert stored(mailroom.session, account_id).refresh_token == "refresh-2"


def accept_connections(database: Engine, template: str, *, accept: bool) -> None:
    """Make PostgreSQL refuse new connections to the test's database, and close the pool's, or accept them again."""
    engine = databases.connect(make_url(template).set(database="postgres").render_as_string(hide_password=False))
    with databases.autocommit(engine) as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {database.url.database} ALLOW_CONNECTIONS {accept}")
    databases.dispose(engine)
    databases.dispose(database)


def test_a_refresh_token_that_a_person_gives_meanwhile_is_not_replaced(
    mailroom: Mailroom, tokens: TokenServer, oauth, database
):
    tokens.answer = (200, {"access_token": "access-1", "expires_in": 1, "refresh_token": "refresh-2"})
    account_id = mailroom.add(**oauth)

    def grant_again() -> None:
        with Session(database) as session, session.begin():
            change_account(session, account_id, refresh_token="refresh-9")

    tokens.looks = grant_again
    mailroom.poll(account_id)
    tokens.looks = lambda: None
    mailroom.poll(account_id)

    assert [asked["refresh_token"] for asked in tokens.asked] == ["refresh-1", "refresh-9"]


def test_client_credentials_ask_with_the_clients_secret(mailroom: Mailroom, tokens: TokenServer, oauth):
    account_id = mailroom.add(
        auth="client_credentials", token_url=tokens.url, client_id="rota", scope="imap", secret="ann"
    )

    assert mailroom.poll(account_id).state == "succeeded"
    assert tokens.asked == [
        {"grant_type": "client_credentials", "client_id": "rota", "client_secret": "sesame", "scope": "imap"}
    ]


@pytest.mark.parametrize("error", ["invalid_grant", "unauthorized_client"])
def test_a_revoked_grant_stops_the_account_at_once(mailroom: Mailroom, tokens: TokenServer, oauth, error):
    tokens.answer = (400, {"error": error, "error_description": "ann@example.org has revoked it"})
    account_id = mailroom.add(**oauth)

    run = mailroom.poll(account_id)

    assert (run.state, run.reason) == ("dead", "no retry")
    assert f"answered 400, error {error}: the grant was revoked" in run.error
    assert "ann@example.org" not in run.error
    assert mailroom.account(account_id).state == "auth_failed"
    tokens.answer = (200, {"access_token": "access-2", "expires_in": 3600})
    assert change_account(mailroom.session, account_id, refresh_token="refresh-9")
    mailroom.session.commit()
    assert mailroom.follow(account_id).state == "succeeded"
    assert tokens.asked[-1]["refresh_token"] == "refresh-9"


@pytest.mark.parametrize(
    ("answer", "state", "told"),
    [
        ((401, {"error": "invalid_client"}), "retrying", "LoginRefused: the token server"),
        ((500, b"<html>oops</html>"), "retrying", "ConnectFailed: the token server"),
        ((200, b"[]"), "retrying", "answered without an access token"),
        ((200, {"access_token": "a\r\nb"}), "retrying", "answered without an access token"),
        ((302, b""), "retrying", "ConnectFailed: the token server"),
    ],
)
def test_other_answers_fail_with_a_sentence(mailroom: Mailroom, tokens: TokenServer, oauth, answer, state, told):
    tokens.answer = answer

    run = mailroom.poll(mailroom.add(**oauth))

    assert (run.state, told in run.error) == (state, True)
    assert mailroom.server.connections == 0


@pytest.mark.parametrize("answer", [(429, b""), (503, b""), (400, {"error": "temporarily_unavailable"})])
def test_a_busy_token_server_is_left_alone_for_a_while(mailroom: Mailroom, tokens: TokenServer, oauth, answer):
    tokens.answer = answer

    assert mailroom.poll(mailroom.add(**oauth)).result["postponed_seconds"] == 60


def test_a_token_server_that_cannot_be_reached_is_named(mailroom: Mailroom, oauth):
    run = mailroom.poll(mailroom.add(**{**oauth, "token_url": "http://127.0.0.1:1/token"}))

    assert "the token server http://127.0.0.1:1/token cannot be reached: ConnectError" in run.error


def test_no_transaction_is_open_while_the_token_server_is_asked(
    mailroom: Mailroom, tokens: TokenServer, oauth, database
):
    seen: list[int] = []
    idle = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'")

    def look() -> None:
        with database.connect() as connection:
            seen.append(connection.scalar(idle))

    tokens.looks = look
    account_id = mailroom.add(**oauth)
    mailroom.poll(account_id)

    assert seen == [0]


def test_no_token_is_in_a_table_a_run_or_the_log(mailroom: Mailroom, tokens: TokenServer, oauth, caplog):
    mailroom.server.tokens = set()
    with caplog.at_level("DEBUG"):
        run = mailroom.poll(mailroom.add(**oauth))

    assert "has refused the log-in" in run.error
    dumped = [
        str(mailroom.session.execute(text(f"SELECT CAST({table} AS text) FROM {table}")).scalars().all())
        for table in ("mail_accounts", "mail_tokens", "rota_runs", "rota_attempts", "rota_key_schedules")
    ]
    for each in ("refresh-1", "access-1"):
        assert each not in "".join(dumped) + caplog.text


class TestKeys:
    def test_a_new_key_in_front_encrypts_and_the_former_one_still_decrypts(self, configure):
        old, new = new_key(), new_key()
        configure(key=old)
        token = encrypt("refresh")
        configure(key=f"{new},{old}")
        assert decrypt(token) == "refresh"
        other = encrypt("refresh")
        configure(key=new)

        assert decrypt(other) == "refresh"
        with pytest.raises(BadKey, match=r"^ROTA_MAIL_KEY has no key that fits a stored token; add the former key"):
            decrypt(token)

    @pytest.mark.parametrize("key", ["short", "x" * 44])
    def test_what_is_no_key_is_told_without_it(self, configure, key):
        configure(key=key)

        with pytest.raises(BadKey, match=r"^ROTA_MAIL_KEY has a part that is no key: 32 bytes") as refused:
            encrypt("refresh")
        assert key not in str(refused.value)

    def test_a_missing_key_is_told(self, configure):
        configure()

        with pytest.raises(BadKey, match=r"^ROTA_MAIL_KEY is not set, and OAuth2 tokens are stored encrypted"):
            encrypt("refresh")


class TestSecrets:
    def test_a_file_comes_before_the_environment(self, tmp_path, configure, monkeypatch):
        (tmp_path / "ann.imap").write_text("from the file\n")
        monkeypatch.setenv("MAIL_SECRET_ANN_IMAP", "from the environment")
        assert secret("ann.imap") == "from the environment"
        configure(secrets_dir=str(tmp_path))

        assert secret("ann.imap") == "from the file"
        assert variable_of("ann.imap") == "MAIL_SECRET_ANN_IMAP"

    @pytest.mark.parametrize(
        ("content", "told"), [(b"", "empty"), (b"\xff", "not UTF-8"), (b"x" * 200_000, "too long")]
    )
    def test_a_file_without_a_secret_is_told(self, tmp_path, configure, content, told):
        (tmp_path / "ann").write_bytes(content)
        configure(secrets_dir=str(tmp_path))

        with pytest.raises(SecretMissing, match=rf"expected it in the file .*/ann \({told}\) or the variable"):
            secret("ann")
