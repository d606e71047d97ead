"""Deletes the data of an account that is ``deleting``: first its objects, then its rows, and the account itself last.

The function that sets the state ``deleting`` also removes the schedule, in one transaction. A poll that is running ends
before the deletion begins, since both have the limit ``ONE_AT_A_TIME``. So when there is no object below the account's
prefix, no further object follows.
"""

from collections.abc import Sequence
from itertools import islice

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core import Checkpoint, Limit
from plugins.mail.models import Account, AccountState, Deletion, Message
from plugins.mail.store import Store, account_prefix

#: The limit of runs that write or compare the objects of an account. These runs have the account's id as their argument
#: ``account_id``.
ONE_AT_A_TIME = Limit("mail-objects:{account_id}", at_once=1)
BATCH = 500


def delete_account(session: Session, account_id: int, store: Store, *, checkpoint: Checkpoint) -> dict[str, int]:
    """Delete the remaining data of the account, or nothing if it is not ``deleting``. Return the counts."""
    counts = {"messages": 0, "objects": 0, "accounts": 0}
    is_deleting = select(Account.id).where(Account.id == account_id, Account.state == AccountState.DELETING)
    if session.scalar(is_deleting) is None:
        return counts
    while messages := first_messages(session, account_id):
        checkpoint(counts)  # no connection is held while the job waits for the store
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
    """Return some messages of the account, each with the key of its object."""
    some = select(Message.id, Message.storage_key).where(Message.account_id == account_id).limit(BATCH)
    return [(message_id, key) for message_id, key in session.execute(some)]
