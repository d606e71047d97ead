"""The routes of this plugin: accounts, without any secret. They call the functions that applications call."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from core import enqueue
from plugins.mail import accounts
from plugins.mail.errors import AccountPaused
from plugins.mail.models import Account, AccountState

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class Shown(BaseModel):
    """An account. It has the *name* of its password, and neither the password nor a token."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    host: str
    port: int
    tls: str
    username: str
    auth: str
    folder: str
    poll_seconds: int
    is_urgent: bool
    state: str
    #: Why the account is paused or postponed, or the error of its last poll.
    reason: str | None
    auth_failures: int
    postponed_until: datetime | None


class Pausing(BaseModel):
    """The reason for a pause, for other people."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")] | None = None


class Requested(BaseModel):
    """The run that polls the mailbox: a new one, or one that waits already."""

    run: int


def listed(session: Session) -> list[Shown]:
    """Return the accounts, by name."""
    return [Shown.model_validate(each) for each in accounts.list_accounts(session)]


def one(session: Session, name: Name) -> Shown:
    """Return the account with this name."""
    return Shown.model_validate(accounts.find_account(session, name))


def pause(session: Session, name: Name, why: Pausing | None = None) -> Shown:
    """Do not poll an account until it is resumed. A poll that is running continues."""
    account = accounts.find_account(session, name)
    accounts.pause_account(session, account.id, reason=why.reason if why else None)
    return shown(session, account)


def resume(session: Session, name: Name) -> Shown:
    """Poll an account again that is paused, or whose log-in was refused."""
    account = accounts.find_account(session, name)
    accounts.resume_account(session, account.id)
    return shown(session, account)


def poll(session: Session, name: Name) -> Requested:
    """Poll an account now, and not only after its interval."""
    account = accounts.find_account(session, name)
    if account.state != AccountState.ACTIVE:
        raise AccountPaused(name, account.state)
    run = enqueue(session, accounts.POLL, key=str(account.id), args=accounts.arguments(account), unless="waiting")
    return Requested(run=run)


def shown(session: Session, account: Account) -> Shown:
    """Return an account as it is now."""
    session.flush()
    return Shown.model_validate(account)
