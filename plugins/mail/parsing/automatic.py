"""Recognises mail that a program sent and that must not be answered automatically."""

from collections.abc import Callable, Collection
from email.message import Message

from plugins.mail.parsing import headers as fields
from plugins.mail.parsing.headers import Address
from plugins.mail.parsing.text import on_one_line

PRECEDENCES = {"bulk", "list", "junk", "auto_reply"}
LONGEST_REASON = 100
#: Headers, each with a function that decides from the value, in lower case, whether a program sent the message.
SIGNS: dict[str, Callable[[str], bool]] = {
    "auto-submitted": lambda given: given.partition(";")[0].strip() != "no",
    "precedence": lambda given: given in PRECEDENCES,
    "x-auto-response-suppress": lambda given: given != "none",
    "return-path": lambda given: given == "<>",
}


def why_automatic(headers: Message, content_type: str, sender: Address | None, own: Collection[str]) -> str | None:
    """Return the header that shows that a program sent the message, or None if there is none.

    ``own`` are the addresses of the mailbox, in lower case. An answer to a message from one of these would come back.
    """
    for name, is_sign in SIGNS.items():
        given = on_one_line(fields.value(headers, name), LONGEST_REASON).lower()
        if given and is_sign(given):
            return f"{name}: {given}"[:LONGEST_REASON]
    for name, _ in headers.raw_items():
        if name.lower().startswith("list-"):
            return on_one_line(name.lower(), LONGEST_REASON)
    if content_type == "multipart/report":
        return "multipart/report"
    if sender is not None and sender.address.lower() in own:
        return "sent from this mailbox"
    return None
