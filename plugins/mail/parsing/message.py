"""``parse`` reads all that Rota uses of a message. It never raises an error because of the message."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import Message
from typing import IO

from plugins.mail.parsing import headers as fields
from plugins.mail.parsing.attachments import Attachment, attachment
from plugins.mail.parsing.automatic import why_automatic
from plugins.mail.parsing.headers import Address
from plugins.mail.parsing.limits import Limits
from plugins.mail.parsing.parts import Part, Splitter, text_parts, type_of
from plugins.mail.parsing.text import cleaned, decode, on_one_line, text_of_html, untransferred

#: A clock may be wrong by this much, including a wrong time zone.
WRONG_CLOCK = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """The content of a message, as far as Rota reads it: text of bounded length that PostgreSQL can store."""

    sender: Address | None
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    reply_to: tuple[Address, ...]
    subject: str
    #: The message's id with its angle brackets, like the ids of other messages; None if there is none.
    message_id: str | None
    in_reply_to: str | None
    #: The ids of these messages, the oldest first.
    references: tuple[str, ...]
    #: The field ``Date`` as it was sent, and its time, if that can be right.
    date: str
    sent_at: datetime | None
    #: The plain text, or the text that a reader sees of the HTML.
    text: str
    attachments: tuple[Attachment, ...]
    #: The header that shows that a program sent the message; None if a person may have sent it.
    automatic: str | None
    #: The content that was left out because of a limit.
    problems: tuple[str, ...]


def parse(
    file: IO[bytes], received_at: datetime, *, own: Collection[str] = (), limits: Limits | None = None
) -> ParsedMessage:
    """Read a message from ``file``, which the server received at ``received_at``, an aware time.

    ``own`` are the addresses of the mailbox, in lower case. Only errors of ``file`` itself are raised.
    """
    limits = limits or Limits()
    split = Splitter(limits)
    split.read(file)
    headers = split.headers or Message()
    senders = fields.addresses(headers, "from", 1)
    attached, taken = [part for part in split.parts if not part.is_text], set[str]()
    if len(attached) > limits.attachments:
        split.problems.append(f"more than {limits.attachments} attachments")
    sender = senders[0] if senders else None
    ids, answered = fields.message_ids(headers, "message-id"), fields.message_ids(headers, "in-reply-to")
    return ParsedMessage(
        sender=sender,
        to=fields.addresses(headers, "to", limits.addresses),
        cc=fields.addresses(headers, "cc", limits.addresses),
        reply_to=fields.addresses(headers, "reply-to", limits.addresses),
        subject=fields.words(fields.value(headers, "subject"), limits.field_characters),
        message_id=ids[0] if ids else None,
        in_reply_to=answered[0] if answered else None,
        references=tuple(fields.message_ids(headers, "references")[-limits.references :]),
        date=on_one_line(fields.value(headers, "date"), limits.field_characters),
        sent_at=fields.instant(fields.value(headers, "date"), received_at + WRONG_CLOCK),
        text=text_of(split.parts, limits),
        attachments=tuple(
            attachment(part, number, taken) for number, part in enumerate(attached[: limits.attachments], start=1)
        ),
        automatic=why_automatic(headers, type_of(headers), sender, own),
        problems=tuple(split.problems),
    )


def text_of(parts: list[Part], limits: Limits) -> str:
    """Return the text of a message: its plain text or, if that is empty, the text of its HTML."""
    plain = "\n".join(map(decoded, text_parts(parts, "text/plain")))
    if not plain.strip():
        plain = text_of_html("\n".join(map(decoded, text_parts(parts, "text/html")))[: limits.text_bytes])
    return cleaned(plain[: limits.text_bytes]).strip()


def decoded(part: Part) -> str:
    """Return the text of a part."""
    return decode(
        untransferred(b"".join(part.body), part.encoding), fields.parameter(part.headers, "content-type", "charset")
    )
