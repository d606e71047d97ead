"""Processes a stored message: reads it, records what was read, and requests the jobs that take it further.

**No message blocks another, and none is lost.** Each has a run of its own. An attempt is counted before the message is
read, in a transaction of its own: a message that ends the process with it is tried as often as one that fails. After
``ATTEMPTS`` it is ``unreadable``, and stays in the store. A store that is away is no fault of a message: its run waits.

**Further jobs.** Those that ROTA_MAIL_NEXT_JOBS names are requested in the transaction that records the message as
processed, once for each message. Each is a job of another plugin, with its own retries, that takes ``message_id``.
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

#: The first one and three retries.
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
        """Process the message unless it has been, or is gone; return what became of it."""
        found = self.session.execute(stored(message_id)).one_or_none()
        if found is None:
            return {"processed": 0}
        if found.readings >= ATTEMPTS:
            return self.give_up(message_id, "each attempt ended the process")
        self.checkpoint()  # nothing of the database is held while the store is waited for
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
        """Record the message as processed; return 0 if it was deleted meanwhile."""
        processed = {"state": MessageState.PROCESSED, "error": None}
        if self.change(message_id, processed):
            content = Content(message_id=message_id, processed_at=self.now, **columns(parsed))
            self.session.add(content)
            self.session.flush()
            return 1
        return 0

    def request_next(self, message_id: int) -> None:
        """Request the jobs that take the message further. Raises Later if one cannot be requested: it may be soon."""
        try:
            for name in self.next_jobs:
                self.request(name, message_id)
        except RotaError as error:
            self.session.rollback()
            self.count(message_id, -1)
            raise Later(in_=WAIT, reason=f"ROTA_MAIL_NEXT_JOBS: {error}") from error

    def count(self, message_id: int, readings: int) -> None:
        """Count that the message is being read, or take it back, and commit."""
        self.change(message_id, {"readings": Message.readings + readings})
        self.checkpoint()

    def give_up(self, message_id: int, error: str) -> dict[str, int]:
        """Record the message as unreadable; what is in the store stays there."""
        unreadable = {"state": MessageState.UNREADABLE, "error": error.strip()[:LONGEST_ERROR]}
        return {"unreadable": self.change(message_id, unreadable)}

    def change(self, message_id: int, values: dict[str, Any]) -> int:
        """Change the row of the message if it still waits to be processed; return how many rows that is."""
        waiting = update(Message).where(Message.id == message_id, Message.state == MessageState.STORED).values(values)
        return len(self.session.scalars(waiting.returning(Message.id)).all())


def stored(message_id: int) -> Select[str | None, int, datetime, str]:
    """The message if it waits to be processed, and the name with which its account logs in."""
    columns = (Message.storage_key, Message.readings, Message.received_at, Account.username)
    return (
        select(*columns)
        .join(Account, Account.id == Message.account_id)
        .where(Message.id == message_id, Message.state == MessageState.STORED)
    )


def columns(parsed: ParsedMessage) -> dict[str, Any]:
    """What was read, as the columns of its row."""
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
