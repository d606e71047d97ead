"""Fetches one message in pieces of 1 MiB into a file, and computes its hash meanwhile. The message is not parsed here.

Some servers ignore the request for a piece and send the whole message. Other servers send a piece of another length.
The whole message is accepted. A piece of another length is discarded, and the next attempt asks for the whole message.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import IO

from imapclient import IMAPClient
from imapclient.exceptions import IMAPClientAbortError, IMAPClientError, ProtocolError

from plugins.mail.errors import MessageFailed
from plugins.mail.imap.answers import explained, said
from plugins.mail.imap.mailbox import Mailbox

PIECE = 1024 * 1024
#: The Message-ID is searched in this many bytes at the message's start.
HEAD = 64 * 1024
MESSAGE_ID = re.compile(rb"(?im)^message-id:[ \t]*((?:[^\r\n]|\r?\n[ \t])*)")
END_OF_HEADER = re.compile(rb"\r?\n\r?\n")
LONGEST_MESSAGE_ID = 1000


@dataclass(frozen=True, slots=True)
class Fetched:
    """A message in a file. ``size`` is 0 if the server sent nothing. ``sha256`` is empty if the message is too big."""

    size: int
    sha256: bytes
    is_too_big: bool = False


def fetch(client: IMAPClient, mailbox: Mailbox, uid: int, file: IO[bytes], *, most: int, whole: bool) -> Fetched:
    """Write the message to ``file``, unless it has more than ``most`` bytes.

    Raises MessageFailed if the server sends no such message. Raises ConnectionCut or ServerBusy if the connection ends.
    """
    digest, size = hashlib.sha256(), 0
    while True:
        piece = _piece(client, mailbox, uid, None if whole else size)
        if size and len(piece) > PIECE:
            raise MessageFailed(f"the server has sent {len(piece)} bytes of a message where {PIECE} were asked for")
        size += len(piece)
        if size > most:
            return Fetched(size, b"", is_too_big=True)
        digest.update(piece)
        file.write(piece)
        if whole or len(piece) != PIECE:
            return Fetched(size, digest.digest())


def message_id(header: bytes) -> str | None:
    """Return the Message-ID in the header at the start of a message, as text that PostgreSQL can store; None if there
    is none.
    """
    found = MESSAGE_ID.search(END_OF_HEADER.split(header, maxsplit=1)[0])
    if found is None:
        return None
    text = " ".join(found[1].decode("ascii", errors="replace").replace("\0", "").split())
    return text[:LONGEST_MESSAGE_ID] or None


def _piece(client: IMAPClient, mailbox: Mailbox, uid: int, start: int | None) -> bytes:
    """Return the next piece, or the whole message; empty if the server sends nothing."""
    part = "" if start is None else f"<{start}.{PIECE}>"
    with explained(mailbox):
        try:
            answer = client.fetch([uid], [f"BODY.PEEK[]{part}"])
        except IMAPClientAbortError:
            raise
        except (ProtocolError, ValueError, TypeError):
            # Without the words of the error, which may be a part of the message.
            raise MessageFailed("the server has sent an answer that cannot be read") from None
        except IMAPClientError as error:
            raise MessageFailed(f"the server has not sent the message: {said(error, mailbox)}") from None
    bodies = [value for key, value in answer.get(uid, {}).items() if key.startswith(b"BODY[]")]
    return bodies[0] if bodies and isinstance(bodies[0], bytes) else b""
