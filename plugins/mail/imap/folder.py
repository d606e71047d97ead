"""Opens a folder only for reading, and lists its messages in windows.

UIDs are not contiguous, UIDNEXT is only a hint, and ``n:*`` finds the last message even if its UID is less than n.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from imapclient import IMAPClient
from imapclient.exceptions import IMAPClientAbortError, IMAPClientError

from plugins.mail.errors import FolderMissing, PollFailed, ServerBusy
from plugins.mail.imap.answers import explained, is_busy, said
from plugins.mail.imap.mailbox import Mailbox

#: The most UIDs of one search. An answer with about 150,000 UIDs is longer than the million bytes that imaplib reads.
WINDOW = 5000


@dataclass(frozen=True, slots=True)
class Opened:
    """A folder as EXAMINE describes it. ``uidnext`` is 0 if the server does not report it."""

    uidvalidity: int
    uidnext: int
    exists: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A message before it is fetched. ``size`` is a hint, and 0 if unknown; some servers report a wrong size."""

    uid: int
    size: int
    internal_date: datetime | None
    header: bytes = b""


def examine(client: IMAPClient, mailbox: Mailbox) -> Opened:
    """Open the folder for reading. Raises FolderMissing, ServerBusy or PollFailed."""
    with explained(mailbox):
        try:
            answer = client.select_folder(mailbox.folder, readonly=True)
        except IMAPClientAbortError:
            raise
        except IMAPClientError as error:
            text = said(error, mailbox)
            if is_busy(text):
                raise ServerBusy(f"{mailbox} is busy: {text}") from None
            raise FolderMissing(mailbox.folder, text) from None
    uidvalidity = _number(answer.get(b"UIDVALIDITY"))
    if not uidvalidity:
        raise PollFailed(f"{mailbox} gives no UIDVALIDITY, without which messages cannot be told apart")
    return Opened(uidvalidity, _number(answer.get(b"UIDNEXT")), _number(answer.get(b"EXISTS")))


def windows(client: IMAPClient, opened: Opened, after: int) -> Iterator[list[int]]:
    """Yield the UIDs greater than ``after``, in order, up to 5,000 at once.

    If UIDNEXT has decreased, yield all UIDs.
    """
    if opened.uidnext == after + 1 or not opened.exists:
        return
    start = 1 if 0 < opened.uidnext <= after else after + 1
    if opened.exists <= WINDOW:
        yield from filter(None, [_search(client, start, None)])
        return
    while start:
        found = _search(client, start, start + WINDOW - 1)
        yield from filter(None, [found])
        start += WINDOW
        if opened.uidnext and start >= opened.uidnext:
            return
        if not found or not opened.uidnext:
            start = next_uid(client, opened.exists, start)


def next_uid(client: IMAPClient, exists: int, start: int) -> int:
    """Return the smallest UID that is not less than ``start``, or 0.

    The UID is found by halving the numbers 1 to ``exists``.
    """
    low, high, found = 1, exists, 0
    while low <= high:
        middle = (low + high) // 2
        uid = _uid_of(client, middle)
        if uid >= start:
            found, high = uid, middle - 1
        else:
            low = middle + 1
    return found


def list_messages(client: IMAPClient, uids: Sequence[int], *, header: bool = False) -> dict[int, Listed]:
    """Yield the sizes and times of messages, and their Message-ID lines if asked for.

    Messages that are gone are left out.

    If a server's answer cannot be read, the messages are requested one by one, and then by their UIDs alone.
    """
    items = ["RFC822.SIZE", "INTERNALDATE", *(["BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)]"] if header else [])]
    try:
        answer = client.fetch(uids, items)
    except IMAPClientAbortError:
        raise
    except (IMAPClientError, ValueError, TypeError, OverflowError):
        if len(uids) > 1:
            return {uid: each for one in uids for uid, each in list_messages(client, [one], header=header).items()}
        return {uid: Listed(uid, 0, None) for uid in uids}
    return {uid: _listed(uid, answer[uid]) for uid in uids if uid in answer}


def is_there(client: IMAPClient, uid: int) -> bool:
    """Return whether the folder still has the message."""
    return uid in client.search(f"UID {uid}")


def _search(client: IMAPClient, start: int, end: int | None) -> list[int]:
    last = "*" if end is None else str(end)
    found: list[int] = client.search(f"UID {start}:{last}")
    return sorted({uid for uid in found if start <= uid and (end is None or uid <= end)})


def _uid_of(client: IMAPClient, number: int) -> int:
    client.use_uid = False
    try:
        answer = client.fetch([number], ["UID"])
    finally:
        client.use_uid = True
    return max((_number(each.get(b"UID")) for each in answer.values()), default=0)


def _listed(uid: int, answer: dict[bytes, object]) -> Listed:
    date = answer.get(b"INTERNALDATE")
    headers = [value for key, value in answer.items() if key.startswith(b"BODY[HEADER") and isinstance(value, bytes)]
    return Listed(
        uid, _number(answer.get(b"RFC822.SIZE")), date if isinstance(date, datetime) else None, b"".join(headers)
    )


def _number(value: object) -> int:
    found = value[0] if isinstance(value, list | tuple) and value else value
    return found if isinstance(found, int) and found > 0 else 0
