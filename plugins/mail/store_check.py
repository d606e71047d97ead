"""Compares the objects of an account with its messages, and repairs differences where this is possible.

- An object without a message comes from a poll that died between storing and recording the message. It is deleted if
  it is older than ``GRACE``. No poll of the account runs meanwhile, since polls and this check have the limit
  ``ONE_AT_A_TIME``: otherwise a poll could store a message just where the check deletes an object.
- A message without its object is named in the log, and counted.
- The processing of a message that has waited for longer than ``GRACE`` is requested again.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby, islice
from typing import TypeVar

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core import Checkpoint, in_batches
from plugins.mail.models import Account, Deletion, Message, MessageState
from plugins.mail.store import Store, account_prefix

log = logging.getLogger(__name__)

T = TypeVar("T")
#: A younger object may come from a poll on another host whose clock is wrong. A younger message may be in a queue.
GRACE = timedelta(days=1)
BATCH = 1000
#: One line of the log names at most this many messages.
NAMED_AT_ONCE = 50


@dataclass
class StoreCheck:
    """The check of one account."""

    session: Session
    account_id: int
    store: Store
    now: datetime
    checkpoint: Checkpoint
    #: A function that requests the processing of a message.
    request: Callable[[int], object]
    counts: dict[str, int] = field(
        default_factory=lambda: {"objects": 0, "orphans_deleted": 0, "without_object": 0, "requested_again": 0}
    )

    def run(self) -> dict[str, int]:
        """Compare and repair. Return the counts."""
        self.delete_what_was_asked()
        self.delete_orphans()
        self.report_messages_without_object()
        self.request_again()
        return self.counts

    def delete_what_was_asked(self) -> None:
        """Delete the objects that are marked for deletion, and then their marks."""
        asked = select(Deletion.storage_key).where(Deletion.storage_key.startswith(account_prefix(self.account_id)))
        while keys := self.session.scalars(asked.limit(BATCH)).all():
            self.checkpoint(self.counts)  # no transaction stays open while the store works
            self.store.delete(keys)
            self.session.execute(delete(Deletion).where(Deletion.storage_key.in_(keys)))
        self.checkpoint(self.counts)

    def delete_orphans(self) -> None:
        """Delete the objects that belong to no message and are old enough."""
        for objects in batches(self.store.list(account_prefix(self.account_id)), BATCH):
            self.counts["objects"] += len(objects)
            old = {found.key for found in objects if found.written_at < self.now - GRACE}
            orphans = old - set(self.session.scalars(select(Message.storage_key).where(Message.storage_key.in_(old))))
            self.checkpoint(self.counts)
            self.store.delete(orphans)
            self.counts["orphans_deleted"] += len(orphans)

    def report_messages_without_object(self) -> None:
        """Log the messages whose object is missing."""
        for messages in in_batches(self.messages_after):
            self.checkpoint(self.counts)
            missing = [message_id for message_id, key in messages if key not in self.present(messages)]
            for named in batches(self.still_there(missing), NAMED_AT_ONCE):
                log.warning("mail.messages_without_object account=%s messages=%s", self.account_id, list(named))
                self.counts["without_object"] += len(named)

    def messages_after(self, last: tuple[int, str] | None) -> Sequence[tuple[int, str]]:
        """Yield the messages that should have an object, in the order of their keys, each with its key."""
        some = select(Message.id, Message.storage_key).where(
            Message.account_id == self.account_id,
            Message.storage_key.is_not(None),
            Message.storage_key > (last[1] if last else ""),
        )
        rows = self.session.execute(some.order_by(Message.storage_key).limit(BATCH))
        return [(message_id, str(key)) for message_id, key in rows]

    def present(self, messages: Sequence[tuple[int, str]]) -> set[str]:
        """Return the keys of those of ``messages`` whose object exists."""
        folders = {key.rpartition("/")[0] + "/" for _, key in messages}
        return {found.key for folder in folders for found in self.store.list(folder)}

    def still_there(self, message_ids: Sequence[int]) -> Sequence[int]:
        """Return the messages that still exist and still have the key of an object."""
        rows = select(Message.id).where(Message.id.in_(message_ids), Message.storage_key.is_not(None))
        return self.session.scalars(rows.order_by(Message.id)).all()

    def request_again(self) -> None:
        """Request the processing of messages that have waited too long for it, since their run may be lost."""
        waiting = select(Message.id).where(
            Message.account_id == self.account_id,
            Message.state == MessageState.STORED,
            Message.created_at < self.now - GRACE,
        )
        for message_id in self.session.scalars(waiting.order_by(Message.id).limit(BATCH)).all():
            self.request(message_id)
            self.counts["requested_again"] += 1


def accounts_to_check(session: Session, store: Store, *, checkpoint: Checkpoint) -> list[int]:
    """Return the ids of all accounts, and the ids of deleted accounts that still have objects."""
    known = set(session.scalars(select(Account.id)))
    checkpoint()
    with_objects = {name for name, _ in groupby(found.key.partition("/")[0] for found in store.list())}
    return sorted(known | {int(name) for name in with_objects if name.isdecimal()})


def batches(each: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """Yield ``each`` in batches of this size."""
    left = iter(each)
    while some := list(islice(left, size)):
        yield some
