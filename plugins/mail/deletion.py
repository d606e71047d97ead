"""Deletes what an account has left, once it is ``deleting``: objects, then rows, and the account itself last.

The function that sets the state also removes the schedule, in one transaction. A poll that is at work then ends before
this begins: both have the limit ``ONE_AT_A_TIME``. So once there is no object below the account's prefix, none follows.
"""

from collections.abc import Sequence
from itertools import islice

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core import Checkpoint, Limit
from plugins.mail.models import Account, AccountState, Deletion, Message
from plugins.mail.store import Store, account_prefix

#: Of the runs that write or compare the objects of an account, which have its id as the argument ``account_id``.
ONE_AT_A_TIME = Limit("mail-objects:{account_id}", at_once=1)
BATCH = 500


def delete_account(session: Session, account_id: int, store: Store, *, checkpoint: Checkpoint) -> dict[str, int]:
    """Delete all that is left of the account; nothing if it is not ``deleting``. Return the counts."""
    counts = {"messages": 0, "objects": 0, "accounts": 0}
    is_deleting = select(Account.id).where(Account.id == account_id, Account.state == AccountState.DELETING)
    if session.scalar(is_deleting) is None:
        return counts
    while messages := first_messages(session, account_id):
        checkpoint(counts)  # nothing of the database is held while the store is waited for
        store.delete(key for _, key in messages if key)
        session.execute(delete(Message).where(Message.id.in_([message_id for message_id, _ in messages])))
        counts["messages"] += len(messages)
    checkpoint(counts)
    while left := list(islice((found.key for found in store.list(account_prefix(account_id))), BATCH)):
        store.delete(left)
        counts["objects"] += len(left)
    session.execute(delete(Deletion).where(Deletion.storage_key.startswith(account_prefix(account_id))))
    session.execute(delete(Account).where(Account.id == account_id))
    counts["accounts"] = 1
    return counts


def first_messages(session: Session, account_id: int) -> Sequence[tuple[int, str | None]]:
    """Some messages of the account, each with the key of its object."""
    some = select(Message.id, Message.storage_key).where(Message.account_id == account_id).limit(BATCH)
    return [(message_id, key) for message_id, key in session.execute(some)]
