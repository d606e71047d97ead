"""OAuth2 tokens of accounts. They are kept encrypted, and refreshed by the run that holds the account's lease.

No transaction is open while the token server is asked. The server may replace a refresh token, and accept the former
one for a short time only; some servers revoke the grant if the former one is sent again. So what the server has granted
is committed at once, in a transaction of its own, and this is repeated while PostgreSQL cannot be reached. A thread of
its own asks and commits. An interruption of the run, such as the loss of its lease when PostgreSQL was restarted,
reaches the run's thread only after the commit. The new token is lost if the process dies before the commit, or if
PostgreSQL is away for longer than ``AWAY_AT_MOST``.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from sqlalchemy import ColumnElement, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from core import Run
from plugins.mail import oauth
from plugins.mail.encryption import decrypt, encrypt
from plugins.mail.models import Account, Token
from plugins.mail.oauth import Granted
from plugins.mail.secrets import secret

#: A token that ends within this time is replaced before it is used.
LEAST_LEFT = timedelta(minutes=5)
#: A new token is stored again and again for this long. A failover takes one or two minutes, and a poll may take ten.
AWAY_AT_MOST = timedelta(minutes=2)
#: The wait between two tries, in seconds. It is short, so that the token is stored before the run's next attempt.
STORE_AGAIN_SECONDS = 0.5
#: The errors of a PostgreSQL that cannot be reached, of a standby (InternalError), and of a pool that is used up.
AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of an account, decrypted. Its ``repr`` does not show them."""

    refresh_token: str | None
    access_token: str | None
    expires_at: datetime | None
    #: The refresh token as the row has it.
    encrypted: bytes | None

    def __repr__(self) -> str:
        return f"Tokens(expires_at={self.expires_at})"


def keep_refresh_token(session: Session, account_id: int, refresh_token: str) -> None:
    """Store a refresh token, encrypted, and forget the access token of the former refresh token. Raises BadKey."""
    row = {"refresh_token": encrypt(refresh_token), "access_token": None, "expires_at": None}
    _put(session, account_id, row)


def keep_granted(session: Session, account_id: int, granted: Granted, ends: datetime, former: bytes | None) -> None:
    """Store an access token, and the refresh token if the server has replaced it, both encrypted. Raises BadKey.

    Store nothing if ``former`` is no longer the refresh token of the row: a person or a later poll has stored another.
    """
    row: dict[str, object] = {"access_token": encrypt(granted.access_token), "expires_at": ends}
    if granted.refresh_token is not None:
        row["refresh_token"] = encrypt(granted.refresh_token)
    _put(session, account_id, row, Token.refresh_token.is_not_distinct_from(former))


def forget_access_token(session: Session, account_id: int) -> None:
    """Forget the access token, so that the next poll fetches another one."""
    session.execute(update(Token).where(Token.account_id == account_id).values(access_token=None, expires_at=None))


def stored(session: Session, account_id: int) -> Tokens:
    """Return the tokens of an account, decrypted. Raises BadKey."""
    row = session.get(Token, account_id, populate_existing=True)
    if row is None:
        return Tokens(None, None, None, None)
    refresh, access = (None if each is None else decrypt(each) for each in (row.refresh_token, row.access_token))
    return Tokens(refresh, access, row.expires_at, row.refresh_token)


def access_token(run: Run, account_id: int) -> str:
    """Return a token with which an account can log in. If the stored token ends soon, fetch another.

    No transaction is open while a token is fetched.

    Raises LoginGivenUp if the grant was revoked. Raises LoginRefused, ServerBusy, ConnectFailed, BadKey or
    SecretMissing.
    """
    kept = stored(run.session, account_id)
    account = run.session.get_one(Account, account_id)
    client = oauth.Client(str(account.token_url), str(account.client_id), account.scope, account.secret)
    run.checkpoint()
    if kept.access_token and kept.expires_at and kept.expires_at - run.now > LEAST_LEFT:
        return kept.access_token
    client_secret = secret(client.secret) if client.secret else None
    new_session = partial(Session, run.session.get_bind())

    def renew() -> str:
        granted = oauth.ask(client, client_secret, kept.refresh_token)
        ends = run.now + granted.lasting
        _persist(new_session, lambda session: keep_granted(session, account_id, granted, ends, kept.encrypted))
        return granted.access_token

    return _uninterrupted(renew)


def _uninterrupted(body: Callable[[], T]) -> T:
    """Call ``body`` in another thread, and wait for its end, since an interruption is only for the run's thread."""
    with ThreadPoolExecutor(1, "rota-mail-token") as executor:
        return executor.submit(body).result()


def _persist(new_session: Callable[[], Session], change: Callable[[Session], None]) -> None:
    """Commit a change, and repeat this while PostgreSQL is away.

    A commit whose answer was lost is repeated too. If it had replaced the refresh token, ``keep_granted`` then changes
    nothing.
    """
    last_try = time.monotonic() + AWAY_AT_MOST.total_seconds()
    while True:
        try:
            with new_session() as session, session.begin():
                return change(session)
        except AWAY:
            if time.monotonic() >= last_try:
                raise
        time.sleep(STORE_AGAIN_SECONDS)


def _put(
    session: Session, account_id: int, row: Mapping[str, object], where: ColumnElement[bool] | None = None
) -> None:
    statement = insert(Token).values(account_id=account_id, **row)
    session.execute(statement.on_conflict_do_update(index_elements=[Token.account_id], set_=row, where=where))
