"""The rows of messages, as a poll writes them. Each message of a folder has one row, whatever happened to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from plugins.mail.imap.folder import Listed
from plugins.mail.imap.mailbox import Mailbox
from plugins.mail.models import ONE_ROW, Account, AccountState, Folder, Message, MessageState

#: Earlier times are not accepted: no server has an older message, and PostgreSQL and Python disagree about years before
#: 1.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: A message's time may be later than the poll's time by this much.
LATEST = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Numbering:
    """A folder's UIDs between two changes of its UIDVALIDITY, and the high-water mark.

    ``number`` identifies the folder in the keys of its objects.
    """

    number: int
    uidvalidity: int
    generation: int
    last_uid: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an attempt to fetch a message."""

    state: MessageState
    size: int = 0
    sha256: bytes | None = None
    message_id: str | None = None
    storage_key: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A message that could not be fetched yet."""

    uid: int
    attempts: int


def hold(session: Session, mailbox: Mailbox) -> bool:
    """Keep the account from being changed in this transaction. Return False if it has changed since the poll began."""
    of = select(Account).where(Account.id == mailbox.account_id).with_for_update(read=True)
    account = session.scalars(of, execution_options={"populate_existing": True}).one_or_none()
    if account is None or account.state == AccountState.DELETING:
        return False
    same = ("host", "port", "username", "folder")
    return all(getattr(account, name) == getattr(mailbox, name) for name in same)


def numbering(session: Session, mailbox: Mailbox) -> Numbering | None:
    """Return how far the folder has been read, or None if it has never been read."""
    row = session.get(Folder, (mailbox.account_id, mailbox.folder), populate_existing=True)
    return Numbering(row.number, row.uidvalidity, row.generation, row.last_uid) if row is not None else None


def begin(session: Session, mailbox: Mailbox, uidvalidity: int) -> Numbering:
    """Return the numbering of a folder that is read for the first time."""
    row = {"account_id": mailbox.account_id, "folder": mailbox.folder, "uidvalidity": uidvalidity}
    number = session.scalars(insert(Folder).values(row).returning(Folder.number)).one()
    return Numbering(number, uidvalidity, 1, 0)


def advance(session: Session, mailbox: Mailbox, uid: int) -> None:
    """Move the high-water mark to ``uid``. The mark never moves back."""
    of = (Folder.account_id == mailbox.account_id, Folder.folder == mailbox.folder)
    session.execute(update(Folder).where(*of, Folder.last_uid < uid).values(last_uid=uid))


def known(session: Session, mailbox: Mailbox, numbered: Numbering, uids: Iterable[int]) -> set[int]:
    """Return those of ``uids`` that have a row."""
    found = select(Message.uid).where(
        Message.account_id == mailbox.account_id,
        Message.folder == mailbox.folder,
        Message.generation == numbered.generation,
        Message.uid == func.any(list(uids)),
    )
    return set(session.scalars(found))


def failed(session: Session, mailbox: Mailbox, numbered: Numbering, most: int) -> list[Failed]:
    """Return up to ``most`` messages that must be fetched again, the messages with the fewest attempts first."""
    found = (
        select(Message.uid, Message.attempts)
        .where(
            Message.account_id == mailbox.account_id,
            Message.folder == mailbox.folder,
            Message.state == MessageState.FAILED,
            Message.generation == numbered.generation,
        )
        .order_by(Message.attempts, Message.uid)
        .limit(most)
    )
    return [Failed(uid, attempts) for uid, attempts in session.execute(found)]


def record(
    session: Session, mailbox: Mailbox, numbered: Numbering, listed: Listed, outcome: Outcome, now: datetime
) -> int | None:
    """Write the row of a message, and return its id. Return None if the message has a row that did not fail."""
    values = {
        "account_id": mailbox.account_id,
        "folder": mailbox.folder,
        "generation": numbered.generation,
        "uidvalidity": numbered.uidvalidity,
        "uid": listed.uid,
        "received_at": received_at(listed.internal_date, now),
        "attempts": 0
        if outcome.state == MessageState.STORED
        else 1,  # the attempts to process it are counted from here on
        "state": outcome.state,
        "size": outcome.size or listed.size,
        "sha256": outcome.sha256,
        "message_id": outcome.message_id,
        "storage_key": outcome.storage_key,
        "error": outcome.error,
    }
    again = {name: values[name] for name in ("state", "size", "sha256", "message_id", "storage_key", "error")}
    statement = insert(Message).values(values)
    statement = statement.on_conflict_do_update(
        constraint=ONE_ROW,
        set_={**again, "attempts": 0 if outcome.state == MessageState.STORED else Message.attempts + 1},
        where=Message.state == MessageState.FAILED,
    )
    return session.scalar(statement.returning(Message.id))


def take_over(session: Session, mailbox: Mailbox, numbered: Numbering, listed: Listed, sha256: bytes) -> int | None:
    """If a row of an earlier generation has the same content, give it the new number and return its id.

    Return None if no row of an earlier generation has the same content.
    """
    former = (
        select(Message.id)
        .where(
            Message.account_id == mailbox.account_id,
            Message.sha256 == sha256,
            Message.folder == mailbox.folder,
            Message.generation < numbered.generation,
        )
        .order_by(Message.id)
        .limit(1)
        .scalar_subquery()
    )
    values = {"generation": numbered.generation, "uidvalidity": numbered.uidvalidity, "uid": listed.uid}
    return session.scalar(update(Message).where(Message.id == former).values(values).returning(Message.id))


def received_at(internal_date: datetime | None, now: datetime) -> datetime:
    """Return the time that a server gives a message, if it can be right."""
    if internal_date is None or internal_date.utcoffset() is None:
        return now
    return min(max(internal_date, EPOCH), now + LATEST)
