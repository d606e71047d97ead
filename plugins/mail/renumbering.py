"""Handles a folder whose UIDVALIDITY has changed: its messages have other UIDs, and most of them are known already.

The server lists all messages. A listed message is a known message if the two have the same Message-ID, size and time.
Then the row of the known message gets the new number. The other messages are fetched. A fetched message with the
content of a known message is also that known message (``take_over`` in ``messages.py``). So no message is imported
twice, and a message that came while the numbers changed is not lost.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from datetime import datetime

from imapclient import IMAPClient
from sqlalchemy import Integer, column, select, update, values
from sqlalchemy.orm import Session

from core import Run
from plugins.mail import messages
from plugins.mail.imap import body, folder
from plugins.mail.imap.answers import explained
from plugins.mail.imap.folder import Listed, Opened
from plugins.mail.imap.mailbox import Mailbox
from plugins.mail.messages import Numbering
from plugins.mail.models import Folder, Message, MessageState

#: The most messages whose Message-IDs are asked for at once.
LISTED_AT_ONCE = 500
#: The most rows of one UPDATE.
RENUMBERED_AT_ONCE = 1000

#: A Message-ID, a size and a time.
Likeness = tuple[str | None, int, datetime]


def renumber(run: Run, client: IMAPClient, mailbox: Mailbox, opened: Opened, before: Numbering) -> Numbering | None:
    """Match the messages that the server lists with the rows, in one transaction.

    Return None if the account was changed.
    """
    known = _known(run.session, mailbox)
    run.checkpoint()
    with explained(mailbox):
        matched = list(_matched(client, opened, known, run.now))
    if not messages.hold(run.session, mailbox):
        run.checkpoint()
        return None
    after = Numbering(before.number, opened.uidvalidity, before.generation + 1, 0)
    _write(run.session, mailbox, after, matched)
    run.checkpoint()
    run.log.warning("mailbox.renumbered", account=mailbox.account_id, matched=len(matched), known=_count(known))
    return after


def _known(session: Session, mailbox: Mailbox) -> dict[Likeness, deque[int]]:
    """Return the ids of the folder's messages, by their properties. Several messages may have the same properties."""
    of = (Message.account_id == mailbox.account_id, Message.folder == mailbox.folder)
    rows = select(Message.message_id, Message.size, Message.received_at, Message.id).where(
        *of, Message.message_id.is_not(None)
    )
    found: dict[Likeness, deque[int]] = defaultdict(deque)
    for message_id, size, received_at, row_id in session.execute(rows.order_by(Message.id)):
        found[message_id, size, received_at].append(row_id)
    return found


def _count(known: dict[Likeness, deque[int]]) -> int:
    return sum(map(len, known.values()))


def _matched(
    client: IMAPClient, opened: Opened, known: dict[Likeness, deque[int]], now: datetime
) -> Iterable[tuple[int, int]]:
    """Return pairs of a row and its new UID."""
    for uids in folder.windows(client, opened, 0):
        for start in range(0, len(uids), LISTED_AT_ONCE):
            some = uids[start : start + LISTED_AT_ONCE]
            for listed in folder.list_messages(client, some, header=True).values():
                if alike := known.get(_likeness(listed, now)):
                    yield alike.popleft(), listed.uid


def _likeness(listed: Listed, now: datetime) -> Likeness:
    return body.message_id(listed.header), listed.size, messages.received_at(listed.internal_date, now)


def _write(session: Session, mailbox: Mailbox, after: Numbering, matched: list[tuple[int, int]]) -> None:
    new = {"uidvalidity": after.uidvalidity, "generation": after.generation}
    of = (Message.account_id == mailbox.account_id, Message.folder == mailbox.folder)
    for start in range(0, len(matched), RENUMBERED_AT_ONCE):
        pairs = values(column("row_id", Integer), column("uid", Integer), name="pair")
        pair = pairs.data(matched[start : start + RENUMBERED_AT_ONCE])
        renumbered = update(Message).where(Message.id == pair.c.row_id).values(uid=pair.c.uid, **new)
        session.execute(renumbered, execution_options={"synchronize_session": False})
    lost = update(Message).where(*of, Message.state == MessageState.FAILED, Message.generation < after.generation)
    session.execute(lost.values(state=MessageState.GONE), execution_options={"synchronize_session": False})
    where = (Folder.account_id == mailbox.account_id, Folder.folder == mailbox.folder)
    session.execute(update(Folder).where(*where).values(last_uid=0, **new))
