"""OAuth2 tokens of accounts. They are kept encrypted, and refreshed by the run that holds the account's lease.

No transaction is open while the token server is asked. The server may replace a refresh token, so the new refresh token
is committed before the access token is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import Run
from plugins.mail import oauth
from plugins.mail.encryption import decrypt, encrypt
from plugins.mail.models import Account, Token
from plugins.mail.secrets import secret

#: A token that ends within this time is replaced before it is used.
LEAST_LEFT = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of an account, decrypted. Its ``repr`` does not show them."""

    refresh_token: str | None
    access_token: str | None
    expires_at: datetime | None

    def __repr__(self) -> str:
        return f"Tokens(expires_at={self.expires_at})"


def keep_refresh_token(session: Session, account_id: int, refresh_token: str) -> None:
    """Store a refresh token, encrypted, and forget the access token of the former refresh token. Raises BadKey."""
    row = {"refresh_token": encrypt(refresh_token), "access_token": None, "expires_at": None}
    _put(session, account_id, row)


def keep_access_token(
    session: Session, account_id: int, access_token: str, expires_at: datetime, refresh_token: str | None
) -> None:
    """Store an access token, and the refresh token if the server has replaced it, both encrypted. Raises BadKey."""
    row: dict[str, object] = {"access_token": encrypt(access_token), "expires_at": expires_at}
    if refresh_token is not None:
        row["refresh_token"] = encrypt(refresh_token)
    _put(session, account_id, row)


def forget_access_token(session: Session, account_id: int) -> None:
    """Forget the access token, so that the next poll fetches another one."""
    session.execute(update(Token).where(Token.account_id == account_id).values(access_token=None, expires_at=None))


def stored(session: Session, account_id: int) -> Tokens:
    """Return the tokens of an account, decrypted. Raises BadKey."""
    row = session.get(Token, account_id, populate_existing=True)
    if row is None:
        return Tokens(None, None, None)
    refresh, access = (None if each is None else decrypt(each) for each in (row.refresh_token, row.access_token))
    return Tokens(refresh, access, row.expires_at)


def access_token(run: Run, account_id: int) -> str:
    """Return a token with which an account can log in. If the stored token ends soon, fetch another.

    No transaction is open then.

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
    granted = oauth.ask(client, client_secret, kept.refresh_token)
    ends = run.now + granted.lasting
    keep_access_token(run.session, account_id, granted.access_token, ends, granted.refresh_token)
    run.checkpoint()
    return granted.access_token


def _put(session: Session, account_id: int, row: Mapping[str, object]) -> None:
    statement = insert(Token).values(account_id=account_id, **row)
    session.execute(statement.on_conflict_do_update(index_elements=[Token.account_id], set_=row))
