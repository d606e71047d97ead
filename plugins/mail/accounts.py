"""Accounts. They are added, changed, paused, resumed and deleted in the application's own transaction, with their
schedules.

So every account has a schedule, and every schedule has an account. Each function locks the account first and its
schedule afterwards, as a poll does.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core import KeySchedule, enqueue, pause_schedule, resume_schedule, schedule, unschedule
from plugins.mail import tokens
from plugins.mail.account_checks import PORTS, check
from plugins.mail.errors import AccountTaken, BadAccount, UnknownAccount
from plugins.mail.models import Account, AccountState, Auth, Folder, Tls

POLL = "poll-mailbox"
DELETE = "delete-mail-account"
#: The priority of the polls of urgent accounts.
URGENT = 5
#: The parts that a person changes after a log-in was refused.
CREDENTIALS = {"host", "port", "tls", "username", "auth", "secret", "token_url", "client_id", "scope"}
#: If one of these parts changes, the account reads another mailbox, or reaches the same mailbox in another way.
MAILBOX = {"host", "port", "username"}


def add_account(
    session: Session,
    name: str,
    *,
    host: str,
    username: str,
    tls: str,
    port: int | None = None,
    ca_file: str | None = None,
    auth: str = Auth.PASSWORD,
    secret: str | None = None,
    token_url: str | None = None,
    client_id: str | None = None,
    scope: str | None = None,
    refresh_token: str | None = None,
    folder: str = "INBOX",
    every: timedelta = timedelta(seconds=60),
    is_urgent: bool = False,
) -> int:
    """Poll a mailbox from now on, when the caller's transaction commits. Return the account's id.

    ``tls`` is ``implicit`` (port 993, unless ``port`` is given), ``starttls`` or ``none`` (port 143). ``secret`` is the
    *name* of the password or of the client's secret. ``auth`` is ``password``, or the OAuth2 grant ``refresh_token``,
    which needs ``refresh_token``, or ``client_credentials``. ``every`` is 10 seconds to 1 day.

    Raises BadAccount, which names every part that is wrong. Raises AccountTaken if the name or the mailbox has an
    account.
    """
    parts: dict[str, Any] = {
        "name": name, "host": host, "port": port, "tls": tls, "ca_file": ca_file, "username": username, "auth": auth,
        "secret": secret, "token_url": token_url, "client_id": client_id, "scope": scope, "folder": folder,
        "every": every, "is_urgent": is_urgent,
    }  # fmt: skip
    if port is None and tls in list(Tls):
        parts["port"] = PORTS[Tls(tls)]
    check(parts)
    if (auth == Auth.REFRESH_TOKEN) != (refresh_token is not None):
        raise BadAccount(["refresh_token is for auth='refresh_token', and is needed there"])
    account = _insert(session, _columns(parts))
    if refresh_token is not None:
        tokens.keep_refresh_token(session, account.id, refresh_token)
    _schedule(session, account, first="now")
    return account.id


def change_account(session: Session, account_id: int, *, refresh_token: str | None = None, **changes: Any) -> bool:
    """Change the given parts of an account. They have the same names as in ``add_account``. Return False if nothing
    differs.

    New credentials resume an account whose log-in was refused. The schedule of a paused account stays paused.

    Raises UnknownAccount, BadAccount, AccountTaken.
    """
    account = lock_account(session, account_id)
    parts = _parts(account)
    if unknown := changes.keys() - parts.keys():
        raise BadAccount([f"an account has no {each}" for each in sorted(unknown)])
    check(parts | changes)
    new = {name: value for name, value in _columns(changes).items() if getattr(account, name) != value}
    if refresh_token is not None:
        tokens.keep_refresh_token(session, account_id, refresh_token)
    if new:
        _update(session, account, new)
        _schedule(session, account)
    if new.keys() & MAILBOX:
        _number_again(session, account_id)
    if new.keys() & CREDENTIALS or refresh_token is not None:
        tokens.forget_access_token(session, account_id)
        _credentials_changed(session, account)
    return bool(new) or refresh_token is not None


def pause_account(session: Session, account_id: int, *, reason: str | None = None) -> None:
    """Do not poll an account until ``resume_account``. A poll that is running continues. Raises UnknownAccount."""
    account = lock_account(session, account_id)
    account.state, account.reason = AccountState.PAUSED, reason
    session.flush()
    pause_schedule(session, POLL, key=str(account_id), reason=reason)


def resume_account(session: Session, account_id: int) -> bool:
    """Poll an account again that is paused, or whose log-in was refused. Return False if the account is active.

    The account is polled at once, and not after its interval. Raises UnknownAccount.
    """
    account = lock_account(session, account_id)
    was_active = account.state == AccountState.ACTIVE
    account.state, account.reason, account.auth_failures = AccountState.ACTIVE, None, 0
    account.postponed_until, account.postponements = None, 0
    session.flush()
    resume_schedule(session, POLL, key=str(account_id))
    if not was_active:
        enqueue(session, POLL, key=str(account_id), args=arguments(account), unless="waiting")
    return not was_active


def delete_account(session: Session, account_id: int) -> None:
    """Remove an account and its schedule. A job removes its messages and their files soon after.

    Another account can use the name and the mailbox at once. Raises UnknownAccount.
    """
    account = lock_account(session, account_id)
    account.state, account.reason = AccountState.DELETING, None
    session.flush()
    unschedule(session, POLL, key=str(account_id))
    enqueue(session, DELETE, key=str(account_id), args={"account_id": account_id}, unless="waiting")


def find_account(session: Session, name: str) -> Account:
    """Return the account ``name``. Raises UnknownAccount."""
    named = select(Account).where(Account.name == name, _is_there())
    account = session.scalars(named).one_or_none()
    if account is None:
        raise UnknownAccount(name, "; `rota mail list` has their names")
    return account


def list_accounts(session: Session) -> Sequence[Account]:
    """Return all accounts by name, without those that are being deleted."""
    return session.scalars(select(Account).where(_is_there()).order_by(Account.name)).all()


def wanted_schedules(session: Session) -> list[KeySchedule]:
    """Return the wanted schedules of ``poll-mailbox``: one for each account that is not being deleted."""
    return [
        KeySchedule(str(each.id), interval(each), args=arguments(each), priority=priority(each))
        for each in list_accounts(session)
    ]


def arguments(account: Account) -> dict[str, Any]:
    """Return the arguments of an account's polls. The host is an argument because the limit is per host."""
    return {"account_id": account.id, "host": account.host}


def priority(account: Account) -> int | None:
    """Return the priority of an account's polls, or None for the priority of the job."""
    return URGENT if account.is_urgent else None


def interval(account: Account) -> timedelta:
    """Return the time from one poll to the next."""
    return timedelta(seconds=account.poll_seconds)


def _is_there() -> ColumnElement[bool]:
    return Account.state != AccountState.DELETING


def lock_account(session: Session, account_id: int) -> Account:
    """Return an account, which nobody else changes until this transaction ends. Raises UnknownAccount."""
    wanted = select(Account).where(Account.id == account_id, _is_there()).with_for_update()
    account = session.scalars(wanted, execution_options={"populate_existing": True}).one_or_none()
    if account is None:
        raise UnknownAccount(account_id)
    return account


def _parts(account: Account) -> dict[str, Any]:
    names = ("name", "host", "port", "tls", "ca_file", "username", "auth", "secret", "token_url", "client_id", "scope")
    own = {name: getattr(account, name) for name in (*names, "folder", "is_urgent")}
    return {**own, "every": interval(account)}


def _columns(parts: Mapping[str, Any]) -> dict[str, Any]:
    columns = {name: value for name, value in parts.items() if name != "every"}
    if "host" in columns:
        columns["host"] = columns["host"].lower()
    if columns.get("folder", "").upper() == "INBOX":  # the one name that has no case (RFC 9051, section 5.1)
        columns["folder"] = "INBOX"
    if "every" in parts:
        columns["poll_seconds"] = int(parts["every"].total_seconds())
    return columns


def _insert(session: Session, columns: Mapping[str, Any]) -> Account:
    with suppress(IntegrityError), session.begin_nested():
        return session.scalars(insert(Account).values(columns).returning(Account)).one()
    raise _taken(session, columns)


def _update(session: Session, account: Account, new: Mapping[str, Any]) -> None:
    after = {**{name: getattr(account, name) for name in ("id", "name", "host", "port", "username", "folder")}, **new}
    try:
        with session.begin_nested():
            changed = update(Account).where(Account.id == account.id).values(**new, changed_at=func.now())
            session.execute(changed, execution_options={"synchronize_session": False})
    except IntegrityError:
        raise _taken(session, after) from None
    session.refresh(account)


def _taken(session: Session, columns: Mapping[str, Any]) -> AccountTaken:
    """Return the error for an account whose name or mailbox belongs to another account."""
    others = select(Account.name).where(_is_there(), Account.id != columns.get("id", 0))
    if session.scalar(others.where(Account.name == columns["name"])) is not None:
        return AccountTaken(columns["name"], columns["name"])
    same = [getattr(Account, name) == columns[name] for name in ("host", "port", "username", "folder")]
    return AccountTaken(columns["name"], session.scalars(others.where(*same)).first() or "another one")


def _schedule(session: Session, account: Account, **options: Any) -> None:
    every, args = interval(account), arguments(account)
    schedule(session, POLL, key=str(account.id), every=every, args=args, priority=priority(account), **options)


def _number_again(session: Session, account_id: int) -> None:
    """Make the next poll compare all messages. Another server may have the same UIDVALIDITY, and no server has 0."""
    session.execute(update(Folder).where(Folder.account_id == account_id).values(uidvalidity=0))


def _credentials_changed(session: Session, account: Account) -> None:
    if account.state == AccountState.AUTH_FAILED:
        resume_account(session, account.id)
    else:
        account.auth_failures = 0
        session.flush()
