"""A worker that is killed when a token server has just replaced a refresh token: the account can still log in."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from subprocess import Popen

import pytest
from sqlalchemy.orm import Session

from plugins.mail import add_account
from plugins.mail.encryption import new_key
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, fleet
from tests.support.imap_server import ImapServer, serving
from tests.support.token_server import TokenServer, granting

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

#: A function that chooses a moment, and has ``kill`` called at that moment.
At = Callable[[ImapServer, TokenServer, Callable[[], None]], None]


def answered(server: ImapServer, tokens: TokenServer, kill: Callable[[], None]) -> None:
    """Kill when the answer with the tokens was sent. The worker may have stored it or not."""
    tokens.has_answered = kill


def logging_in(server: ImapServer, tokens: TokenServer, kill: Callable[[], None]) -> None:
    """Kill when the worker has connected to log in with the new token."""
    server.script = lambda command, arguments: kill()


@pytest.mark.parametrize("at", [answered, logging_in])
def test_an_account_whose_worker_was_killed_can_still_log_in(tmp_path, postgres_url, redis_url, configure, at: At):
    asked = tokens_asked_for_by_two_workers(tmp_path, postgres_url, redis_url, configure, at)

    # If the answer was not stored, the second worker sends the former token, which the server accepts for a while.
    assert asked in ([["refresh-1"]] if at is logging_in else [["refresh-1"], ["refresh-1", "refresh-1"]])


def tokens_asked_for_by_two_workers(
    folder: Path, postgres_url: str, redis_url: str, configure: Callable[..., None], at: At
) -> list[str]:
    """Poll with a worker that is killed, and then with another until the poll has succeeded. Return the tokens sent."""
    (folder / "store").mkdir()
    key = new_key()
    configure(key=key)
    environ = {"ROTA_MAIL_STORE": f"file://{folder / 'store'}", "ROTA_MAIL_KEY": key}
    with (
        serving() as server,
        granting() as tokens,
        fleet(folder, postgres_url, redis_url, jobs="none", environ=environ) as service,
    ):
        server.tokens = {"access-1"}
        tokens.answer = (200, {"access_token": "access-1", "expires_in": 3600, "refresh_token": "refresh-2"})
        alive: list[Popen[bytes]] = [service.worker("-Q", "mail")]
        at(server, tokens, lambda: service.kill(alive.pop()) if alive else None)
        add(service, server, tokens)
        eventually(lambda: not alive)
        service.worker("-Q", "mail")
        eventually(lambda: [run.state for run in service.runs("poll-mailbox")] == ["succeeded"])
        return [each["refresh_token"] for each in tokens.asked]


def add(service: Fleet, server: ImapServer, tokens: TokenServer) -> None:
    """Add an account that is polled at once, and not again for a day."""
    imap = {"host": "127.0.0.1", "port": server.port, "tls": "none", "username": "ann"}
    grant = {"auth": "refresh_token", "token_url": tokens.url, "client_id": "rota", "refresh_token": "refresh-1"}
    with Session(service.engine) as session, session.begin():
        add_account(session, "ann", **imap, **grant, every=timedelta(days=1))
