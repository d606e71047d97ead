"""Limits how much of a message is read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits. Content beyond a limit is left out, and recorded among the message's problems."""

    parts: int = 1000
    #: The deepest nesting of parts.
    depth: int = 50
    #: The most bytes of the headers of one part.
    header_bytes: int = 256 << 10
    #: The most characters of the decoded text, and the most bytes of the encoded text of one part.
    text_bytes: int = 1 << 20
    #: The most characters of one field, such as the subject.
    field_characters: int = 1000
    addresses: int = 1000
    references: int = 100
    attachments: int = 200
