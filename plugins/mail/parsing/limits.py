"""How much of a message is read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What is beyond a limit is left out, and the message says so among its problems."""

    parts: int = 1000
    #: How deep parts may be nested.
    depth: int = 50
    #: Of the headers of one part.
    header_bytes: int = 256 << 10
    #: Of the decoded text, and of the encoded text of one part.
    text_bytes: int = 1 << 20
    #: Of one field, such as the subject.
    field_characters: int = 1000
    addresses: int = 1000
    references: int = 100
    attachments: int = 200
