"""Messages that were given up, and how a person has them tried again.

A message is given up when it could not be fetched several times, when it is too big, or when it could not be processed.
Only messages that the server still has under their UIDs can be tried again: those of the account's present folder,
as it is numbered now.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, exists, select, update
from sqlalchemy.orm import Session

from core import enqueue, enqueue_many
from plugins.mail.accounts import POLL, arguments, lock_account
from plugins.mail.models import Account, Folder, Message, MessageState
from plugins.mail.polls import PROCESS

GIVEN_UP = (MessageState.UNREADABLE, MessageState.TOO_BIG)


@dataclass(frozen=True, slots=True)
class Retried:
    """How many messages the next polls fetch again, and how many stored messages are processed again."""

    fetched: int
    processed: int


def retry_messages(session: Session, account_id: int, uids: Collection[int] = ()) -> Retried:
    """Try messages of an account again that were given up: all of them, or those of ``uids``.

    A message that was not fetched is fetched by a poll that follows at once, and has all its attempts again. A stored
    message is processed again. Raises UnknownAccount.
    """
    account = lock_account(session, account_id)
    chosen = _given_up(account) & (Message.uid.in_(uids) if uids else Message.uid.is_not(None))
    fetched = _change(session, chosen & Message.storage_key.is_(None), state=MessageState.FAILED, attempts=0)
    stored = {"state": MessageState.STORED, "readings": 0, "error": None}
    processed = _change(session, chosen & Message.storage_key.is_not(None), **stored)
    if fetched:
        enqueue(session, POLL, key=str(account_id), args=arguments(account), unless="waiting")
    enqueue_many(session, PROCESS, [{"message_id": row} for row in processed], keys=map(str, processed))
    return Retried(len(fetched), len(processed))


def given_up(session: Session, account: Account) -> Sequence[Message]:
    """Return the messages of an account that were given up, in the order of their UIDs."""
    return session.scalars(select(Message).where(_given_up(account)).order_by(Message.uid)).all()


def _given_up(account: Account) -> ColumnElement[bool]:
    numbered = exists().where(
        Folder.account_id == Message.account_id,
        Folder.folder == Message.folder,
        Folder.generation == Message.generation,
    )
    is_of_folder = (Message.account_id == account.id) & (Message.folder == account.folder)
    return is_of_folder & Message.state.in_(GIVEN_UP) & numbered


def _change(session: Session, chosen: ColumnElement[bool], **values: object) -> Sequence[int]:
    return session.scalars(update(Message).where(chosen).values(values).returning(Message.id)).all()
