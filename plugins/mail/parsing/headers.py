"""Reads header fields, whatever is in them."""

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

#: A line that begins a field; all others would end the headers for ``email``.
FIELD = re.compile(rb"[!-9;-~]{1,100}[ \t]*:")
MESSAGE_ID = re.compile(r"<[^<>\s]{1,990}>")
#: More of a field is not looked at.
LONGEST_FIELD = 64 << 10
LONGEST_ADDRESS = 320
#: No mail was sent before.
FIRST_MAIL = datetime(1971, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Address:
    """A name, which may be empty, and an address, as they were written."""

    name: str
    address: str


def read(lines: list[bytes]) -> Message:
    """The header fields of ``lines``. Lines that are neither a field nor the rest of one are left out.

    Bytes beyond ASCII are UTF-8 or Latin-1.
    """
    text = "".join(decode(line, "") for line in kept(lines))
    return attempt(lambda: Parser(policy=compat32).parsestr(text, headersonly=True), Message())


def kept(lines: list[bytes]) -> Iterator[bytes]:
    """The lines that belong to a field; the end of a field that is too long is left out."""
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
    """What ``read_it`` returns, or ``default``: ``email`` raises a dozen kinds of errors for fields that are broken."""
    try:
        return read_it()
    except Exception:  # noqa: BLE001 — see above
        return default


def values(headers: Message, name: str) -> Iterator[str]:
    """The fields of that name as they were sent."""
    return (sent for key, sent in headers.raw_items() if key.lower() == name)


def value(headers: Message, name: str) -> str:
    """The first field of that name; empty if there is none."""
    return next(values(headers, name), "")


def words(raw: str, most: int) -> str:
    """``raw`` as people read it: encoded words decoded, on one line, of at most so many characters."""
    unfolded = raw[: 8 * most].replace("\r", "").replace("\n", "")
    found = attempt(lambda: decode_header(unfolded), [(unfolded, None)])
    texts = [each if isinstance(each, str) else decoded_word(each, charset) for each, charset in found]
    return on_one_line("".join(texts), most)


def decoded_word(content: bytes, charset: str | None) -> str:
    """An encoded word, or what stands between two of them, which has no charset."""
    if charset is None:
        return attempt(lambda: content.decode("raw-unicode-escape"), decode(content, ""))
    return decode(content, charset)


def addresses(headers: Message, name: str, most: int) -> tuple[Address, ...]:
    """The addresses of all fields of that name."""
    nothing: list[tuple[str, str]] = []
    found = attempt(lambda: getaddresses(list(values(headers, name))), nothing)
    return tuple(
        Address(words(each, LONGEST_ADDRESS), on_one_line(address, LONGEST_ADDRESS))
        for each, address in found[:most]
        if address
    )


def message_ids(headers: Message, name: str) -> list[str]:
    """The message ids in the fields of that name, in their order."""
    return [on_one_line(found, 1000) for raw in values(headers, name) for found in MESSAGE_ID.findall(raw)]


def instant(raw: str, latest: datetime) -> datetime | None:
    """The time of a field such as ``Date``, in UTC; None if it cannot be that, such as one after ``latest``."""
    found = attempt(lambda: utc(parsedate_to_datetime(raw[:200])), None)
    return found if found is not None and FIRST_MAIL <= found <= latest else None


def utc(time: datetime) -> datetime:
    """``time`` in UTC, in which it is if it has no time zone."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def parameter(headers: Message, field: str, name: str) -> str:
    """A parameter of a field, such as the charset of Content-Type; empty if there is none."""
    return attempt(lambda: parameter_text(headers.get_param(name, "", field)), "")


def parameter_text(found: object) -> str:
    """A parameter as text, which in RFC 2231 has a charset of its own."""
    if isinstance(found, tuple):
        charset, _, encoded = found
        return decode(encoded.encode("latin-1", "replace"), charset or "")
    return str(found or "")
