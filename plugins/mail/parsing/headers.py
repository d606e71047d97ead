"""Reads header fields, even if they are malformed."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.header import decode_header
from email.message import Message
from email.parser import Parser
from email.policy import compat32
from email.utils import getaddresses, parsedate_to_datetime
from typing import TypeVar

from plugins.mail.parsing.text import decode, on_one_line

T = TypeVar("T")

#: A line that begins a field. For ``email``, any other line would end the headers.
FIELD = re.compile(rb"[!-9;-~]{1,100}[ \t]*:")
MESSAGE_ID = re.compile(r"<[^<>\s]{1,990}>")
#: The characters of a field after this many are ignored.
LONGEST_FIELD = 64 << 10
LONGEST_ADDRESS = 320
#: Earlier times are ignored, since no mail was sent before.
FIRST_MAIL = datetime(1971, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Address:
    """A name, which may be empty, and an address, as the message has them."""

    name: str
    address: str


def read(lines: list[bytes]) -> Message:
    """Return the header fields of ``lines``.

    Lines that are neither a field nor the continuation of a field are left out.

    Bytes beyond ASCII are read as UTF-8 or Latin-1.
    """
    text = "".join(decode(line, "") for line in kept(lines))
    return attempt(lambda: Parser(policy=compat32).parsestr(text, headersonly=True), Message())


def kept(lines: list[bytes]) -> Iterator[bytes]:
    """Yield the lines that belong to a field. The end of a field that is too long is left out."""
    size = LONGEST_FIELD
    for line in lines:
        if FIELD.match(line):
            size = 0
        elif line[:1] not in b" \t":
            continue
        size += len(line)
        if size <= LONGEST_FIELD:
            yield line


def attempt(read_it: Callable[[], T], default: T) -> T:
    """Return the result of ``read_it``, or ``default`` if it raises: ``email`` raises a dozen kinds of errors for
    broken fields.
    """
    try:
        return read_it()
    except Exception:  # noqa: BLE001 — see above
        return default


def values(headers: Message, name: str) -> Iterator[str]:
    """Yield the fields called ``name`` as they were sent."""
    return (sent for key, sent in headers.raw_items() if key.lower() == name)


def value(headers: Message, name: str) -> str:
    """Return the first field called ``name``, or an empty text if there is none."""
    return next(values(headers, name), "")


def words(raw: str, most: int) -> str:
    """Return ``raw`` as readable text: encoded words are decoded, on one line of at most ``most`` characters."""
    unfolded = raw[: 8 * most].replace("\r", "").replace("\n", "")
    found = attempt(lambda: decode_header(unfolded), [(unfolded, None)])
    texts = [each if isinstance(each, str) else decoded_word(each, charset) for each, charset in found]
    return on_one_line("".join(texts), most)


def decoded_word(content: bytes, charset: str | None) -> str:
    """Return an encoded word as text. The text between two encoded words has no charset."""
    if charset is None:
        return attempt(lambda: content.decode("raw-unicode-escape"), decode(content, ""))
    return decode(content, charset)


def addresses(headers: Message, name: str, most: int) -> tuple[Address, ...]:
    """Return the addresses in all fields called ``name``."""
    nothing: list[tuple[str, str]] = []
    found = attempt(lambda: getaddresses(list(values(headers, name))), nothing)
    return tuple(
        Address(words(each, LONGEST_ADDRESS), on_one_line(address, LONGEST_ADDRESS))
        for each, address in found[:most]
        if address
    )


def message_ids(headers: Message, name: str) -> list[str]:
    """Return the message ids in all fields called ``name``, in the order of the message."""
    return [on_one_line(found, 1000) for raw in values(headers, name) for found in MESSAGE_ID.findall(raw)]


def instant(raw: str, latest: datetime) -> datetime | None:
    """Return the time of a field such as ``Date`` in UTC, or None if it cannot be right; for example, if it is after
    ``latest``.
    """
    found = attempt(lambda: utc(parsedate_to_datetime(raw[:200])), None)
    return found if found is not None and FIRST_MAIL <= found <= latest else None


def utc(time: datetime) -> datetime:
    """Return ``time`` in UTC. A time without a time zone is taken as UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def parameter(headers: Message, field: str, name: str) -> str:
    """Return a parameter of a field, such as the charset of Content-Type, or an empty text if there is none."""
    return attempt(lambda: parameter_text(headers.get_param(name, "", field)), "")


def parameter_text(found: object) -> str:
    """Return a parameter as text. By RFC 2231, a parameter may have a charset of its own."""
    if isinstance(found, tuple):
        charset, _, encoded = found
        return decode(encoded.encode("latin-1", "replace"), charset or "")
    return str(found or "")
