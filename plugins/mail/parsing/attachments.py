"""Attachments: the description that a message gives of each, and a safe name under which it can be stored."""

import re
import unicodedata
from dataclasses import dataclass

from plugins.mail.parsing import headers as fields
from plugins.mail.parsing.parts import Part
from plugins.mail.parsing.text import transferred_size

#: Characters that have a special meaning for a file system, a shell or a terminal, including those that change the
#: writing direction.
UNSAFE = re.compile('[\x00-\x1f\x7f-\x9f<>:"|?*\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
#: Windows has devices with these names, with any extension.
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
LONGEST_NAME, LONGEST_SUFFIX = 150, 20
SUFFIXES = {"text/plain": ".txt", "text/html": ".html", "message/rfc822": ".eml"}


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part that is not the message's text. It is neither decoded nor unpacked."""

    #: A safe name for a file in any folder, unique within the message.
    name: str
    content_type: str
    #: The approximate size in bytes after decoding.
    size: int
    is_inline: bool


def attachment(part: Part, number: int, taken: set[str]) -> Attachment:
    """Return the description of ``part``. Its name is not one of ``taken``, and is added to ``taken``."""
    given = fields.parameter(part.headers, "content-disposition", "filename") or fields.parameter(
        part.headers, "content-type", "name"
    )
    name = unique(safe_name(fields.words(given, LONGEST_NAME * 2), number, part.content_type), number, taken)
    is_inline = part.disposition == "inline"
    return Attachment(name, part.content_type, transferred_size(part.size, part.encoding), is_inline)


def safe_name(given: str, number: int, content_type: str) -> str:
    """Return the last part of the path ``given``, without unsafe characters.

    If no character is left, make a name from the number.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", given))[-1]
    name = UNSAFE.sub("", last).strip(". ")
    if not name or DEVICES.match(name):
        return f"attachment-{number}{SUFFIXES.get(content_type, '.bin')}"
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix.encode()) > LONGEST_SUFFIX:
        return cut(name, LONGEST_NAME)
    return cut(stem, LONGEST_NAME - LONGEST_SUFFIX - 1).rstrip(". ") + dot + suffix


def cut(name: str, most: int) -> str:
    """Return the first characters of ``name``, which take at most ``most`` bytes."""
    return name.encode()[:most].decode(errors="ignore")


def unique(name: str, number: int, taken: set[str]) -> str:
    """Return ``name``, with ``number`` before it if it is taken. Case is ignored, since file systems may ignore it."""
    if name.casefold() in taken:
        name = f"{number}-{name}"
    taken.add(name.casefold())
    return name
