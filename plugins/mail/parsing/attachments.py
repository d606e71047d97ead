"""Attachments: what a message says of them, and a name under which each can be stored."""

import re
import unicodedata
from dataclasses import dataclass

from plugins.mail.parsing import headers as fields
from plugins.mail.parsing.parts import Part
from plugins.mail.parsing.text import transferred_size

#: What some file system, shell or screen takes for something else: also what turns the direction of writing.
UNSAFE = re.compile('[\x00-\x1f\x7f-\x9f<>:"|?*\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
#: Windows has devices of these names, whatever follows the dot.
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
LONGEST_NAME, LONGEST_SUFFIX = 150, 20
SUFFIXES = {"text/plain": ".txt", "text/html": ".html", "message/rfc822": ".eml"}


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part that is not the message's text. It is neither decoded nor unpacked."""

    #: Safe as the name of a file in any folder, and unique within the message.
    name: str
    content_type: str
    #: In bytes, decoded, about.
    size: int
    is_inline: bool


def attachment(part: Part, number: int, taken: set[str]) -> Attachment:
    """What ``part`` says of itself; its name is none of ``taken``, and is added to it."""
    given = fields.parameter(part.headers, "content-disposition", "filename") or fields.parameter(
        part.headers, "content-type", "name"
    )
    name = unique(safe_name(fields.words(given, LONGEST_NAME * 2), number, part.content_type), number, taken)
    is_inline = part.disposition == "inline"
    return Attachment(name, part.content_type, transferred_size(part.size, part.encoding), is_inline)


def safe_name(given: str, number: int, content_type: str) -> str:
    """The last part of ``given``, if that is a path, without what is unsafe; or a name made of the number."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", given))[-1]
    name = UNSAFE.sub("", last).strip(". ")
    if not name or DEVICES.match(name):
        return f"attachment-{number}{SUFFIXES.get(content_type, '.bin')}"
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix.encode()) > LONGEST_SUFFIX:
        return cut(name, LONGEST_NAME)
    return cut(stem, LONGEST_NAME - LONGEST_SUFFIX - 1).rstrip(". ") + dot + suffix


def cut(name: str, most: int) -> str:
    """The first characters of ``name``, of at most so many bytes."""
    return name.encode()[:most].decode(errors="ignore")


def unique(name: str, number: int, taken: set[str]) -> str:
    """``name``, with ``number`` before it if it is taken; file systems may not tell cases apart."""
    if name.casefold() in taken:
        name = f"{number}-{name}"
    taken.add(name.casefold())
    return name
