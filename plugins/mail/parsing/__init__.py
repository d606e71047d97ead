"""Reads a raw message: its fields, its text and the names of its attachments. It never raises, whatever the message
contains.

Python's ``email`` builds an object for each part and keeps the whole message in memory, and a message may nest or
repeat parts without limit. So this package splits a message into parts itself, line by line, within limits. Only the
headers are read by ``email``, with ``policy.compat32``: ``policy.default`` raised errors for a quarter of 20,000 broken
messages.
"""

from plugins.mail.parsing.attachments import Attachment
from plugins.mail.parsing.headers import Address
from plugins.mail.parsing.limits import Limits
from plugins.mail.parsing.message import ParsedMessage, parse

__all__ = ["Address", "Attachment", "Limits", "ParsedMessage", "parse"]
