"""Processes a stored message: reads it, records its content, and requests the jobs that process it further.

**No message blocks another message, and no message is lost.** Each message has a run of its own. An attempt is counted
before the message is read, in a transaction of its own. So a message that ends the process is tried as often as a
message that fails. After ``ATTEMPTS`` attempts the message is ``unreadable``, and stays in the store. If the store is
away, this is not the message's fault: its run waits.

**Further jobs.** The jobs in ROTA_MAIL_NEXT_JOBS are requested in the transaction that records the message as
processed, once for each message. Each is a job of another plugin, with its own retries, and takes ``message_id``.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from core import Checkpoint, Later, RotaError
from plugins.mail.models import Account, Content, Message, MessageState
from plugins.mail.parsing import ParsedMessage, parse
from plugins.mail.store import NoSuchObject, Store, StoreError

#: The first attempt and three retries.
ATTEMPTS = 4
#: How long a message waits for a store that is away, or for a job that is not installed.
WAIT = timedelta(minutes=1)
LONGEST_ERROR = 1000

#: Requests a job for a message.
RequestNext = Callable[[str, int], object]


@dataclass(frozen=True)
class Processing:
    """The work of one run on one message."""

    session: Session
    store: Store
    now: datetime
    checkpoint: Checkpoint
    next_jobs: Sequence[str]
    request: RequestNext

    def process(self, message_id: int) -> dict[str, int]:
        """Process the message, unless it is processed or gone already. Return the outcome."""
        found = self.session.execute(stored(message_id)).one_or_none()
        if found is None:
            return {"processed": 0}
        if found.readings >= ATTEMPTS:
            return self.give_up(message_id, "each attempt ended the process")
        self.checkpoint()  # no connection is held while the job waits for the store
        try:
            parsed = self.read(message_id, found.storage_key, found.received_at, own={found.username.lower()})
            with self.session.begin_nested():
                is_there = self.record(message_id, parsed)
        except Later:
            raise
        except Exception as error:  # whatever is wrong with a message, it blocks no other
            if found.readings + 1 < ATTEMPTS:
                raise
            return self.give_up(message_id, "".join(traceback.format_exception_only(error)))
        if is_there:
            self.request_next(message_id)
        return {"processed": is_there, "automatic": int(parsed.automatic is not None)}

    def read(self, message_id: int, key: str, received_at: datetime, own: set[str]) -> ParsedMessage:
        """Read the message from the store. Raises NoSuchObject, and Later if the store cannot be read at present."""
        try:
            file = self.store.open(key)
        except NoSuchObject:
            self.count(message_id, 1)
            raise
        except StoreError as error:
            raise Later(in_=WAIT, reason=str(error)) from error
        with file:
            self.count(message_id, 1)
            return parse(file, received_at, own=own)

    def record(self, message_id: int, parsed: ParsedMessage) -> int:
        """Record the message as processed. Return 0 if it was deleted meanwhile."""
        processed = {"state": MessageState.PROCESSED, "error": None}
        if self.change(message_id, processed):
            content = Content(message_id=message_id, processed_at=self.now, **columns(parsed))
            self.session.add(content)
            self.session.flush()
            return 1
        return 0

    def request_next(self, message_id: int) -> None:
        """Request the jobs that process the message further. Raises Later if a job cannot be requested yet."""
        try:
            for name in self.next_jobs:
                self.request(name, message_id)
        except RotaError as error:
            self.session.rollback()
            self.count(message_id, -1)
            raise Later(in_=WAIT, reason=f"ROTA_MAIL_NEXT_JOBS: {error}") from error

    def count(self, message_id: int, readings: int) -> None:
        """Count an attempt to read the message, or take the count back, and commit."""
        self.change(message_id, {"readings": Message.readings + readings})
        self.checkpoint()

    def give_up(self, message_id: int, error: str) -> dict[str, int]:
        """Record the message as unreadable. Its object stays in the store."""
        unreadable = {"state": MessageState.UNREADABLE, "error": error.strip()[:LONGEST_ERROR]}
        return {"unreadable": self.change(message_id, unreadable)}

    def change(self, message_id: int, values: dict[str, Any]) -> int:
        """Change the row of the message if the message still waits to be processed.

        Return how many rows were changed.
        """
        waiting = update(Message).where(Message.id == message_id, Message.state == MessageState.STORED).values(values)
        return len(self.session.scalars(waiting.returning(Message.id)).all())


def stored(message_id: int) -> Select[str | None, int, datetime, str]:
    """Return the message if it waits to be processed, and the name with which its account logs in."""
    columns = (Message.storage_key, Message.readings, Message.received_at, Account.username)
    return (
        select(*columns)
        .join(Account, Account.id == Message.account_id)
        .where(Message.id == message_id, Message.state == MessageState.STORED)
    )


def columns(parsed: ParsedMessage) -> dict[str, Any]:
    """Return the content of the message as the columns of its row."""
    recipients = {"to": parsed.to, "cc": parsed.cc, "reply_to": parsed.reply_to}
    return {
        "sender_name": parsed.sender.name if parsed.sender else "",
        "sender": parsed.sender.address if parsed.sender else "",
        "recipients": {kind: list(map(asdict, found)) for kind, found in recipients.items()},
        "subject": parsed.subject,
        "in_reply_to": parsed.in_reply_to,
        "reference_ids": list(parsed.references),
        "date": parsed.date,
        "sent_at": parsed.sent_at,
        "text": parsed.text,
        "attachments": list(map(asdict, parsed.attachments)),
        "automatic": parsed.automatic,
        "problems": list(parsed.problems),
    }
