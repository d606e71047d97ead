"""Messages that are broken in many ways, drawn from a seed."""

import random
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import astuple

from plugins.mail.parsing import ParsedMessage

SEED = 20261128
FIELDS = [
    "From",
    "To",
    "Cc",
    "Reply-To",
    "Subject",
    "Date",
    "Message-ID",
    "In-Reply-To",
    "References",
    "Content-Type",
    "Content-Disposition",
    "Content-Transfer-Encoding",
    "Auto-Submitted",
    "Precedence",
    "List-Id",
    "Return-Path",
    "MIME-Version",
    "X-Auto-Response-Suppress",
]
VALUES = [
    b"",
    b" ",
    b"\0",
    b"<",
    b">",
    b"<>",
    b"<[x]@y>",
    b"<a@b>",
    b"a@",
    b"@",
    b"@@@",
    b'"',
    b'"a',
    b"(((",
    b")",
    b"\\",
    b"ann <ann@example.com>",
    b'"An, n" <ann@example.com>, bob@example.com',
    b"group: a@b, c@d;",
    b"=?",
    b"=?=",
    b"=?utf-8?b?",
    b"=?utf-8?b?!!!?=",
    b"=?utf-8?q?=e4?=",
    b"=?utf-8?q?=ZZ?=",
    b"=?nonsense?b?aGk=?=",
    b"=?zlib?b?aGk=?=",
    b"=?utf-8\0?q?a?=",
    b"=?utf-16?b?2D3e?=",
    b"Tue, 3 Mar 2026 10:00:00 +0000",
    b"Tue, 99 Mar 2096 99:99:99 +9999",
    b"Mon, 1 Jan 0000 00:00:00 -0000",
    b"Thu, 1 Jan 1970 00:00:00 +99999999",
    b"multipart/mixed",
    b"multipart/mixed; boundary=",
    b'multipart/mixed; boundary="b"',
    b'multipart/alternative; boundary="b',
    b"multipart/report; boundary=b",
    b"text/plain; charset=utf-8\0",
    b"text/plain; charset=hex",
    b'text/html; charset="utf-8"',
    b"text/plain; charset=punycode",
    b"text",
    b"/",
    b"text/",
    b"message/rfc822",
    b"application/zip; name=..",
    b"text/plain; charset*=utf-8''%zz",
    b"attachment; filename*=''",
    b"attachment; filename*=utf-8''%ff%00",
    b"attachment; filename*0*=a; filename*99=b",
    b'attachment; filename="../../etc/passwd"',
    b'attachment; filename="=?utf-8?b?w6QucGRm?="',
    b"inline; filename=con.txt",
    b"base64",
    b"quoted-printable",
    b"8bit",
    b"x-uuencode",
    b"7bit; x",
    b"auto-replied",
    b"bulk",
    b"no",
    b"\xff\xfe\xed\xa0\x80",
    "ä日本\u202e".encode(),
]
BODIES = [
    b"",
    b"hello\r\n",
    b"\0\0\0",
    b"--b",
    b"--b\r\n",
    b"--b--\r\n",
    b"----\r\n",
    b"--\r\n",
    b"=",
    b"=\r\n=E4=",
    b"!!!!",
    b"QUJD",
    b"QUJ",
    b"<html><p>hi<script>x</p>",
    b"<" * 50,
    b"&#x110000;&#99999999999;&amp",
    bytes(range(256)),
    b"From someone\r\n",
    b"\r\r\n\n\r",
]


def broken_messages(seed: int, count: int) -> Iterator[bytes]:
    """Return ``count`` messages, which are the same for the same seed."""
    dice = random.Random(seed)
    for _ in range(count):
        yield damaged(dice, message(dice, depth=dice.choice([0, 0, 1, 2, 4])))


def message(dice: random.Random, depth: int) -> bytes:
    """Return a message whose fields hardly fit together, with parts of the same kind."""
    lines = [field(dice) for _ in range(dice.randrange(12))]
    if not depth:
        return b"".join(lines) + newline(dice) + body(dice)
    boundary = dice.choice([b"b", b"b", b"", b"b--", b"=_\xff", b"x" * 300])
    lines.append(b"Content-Type: multipart/mixed; boundary=" + boundary + newline(dice))
    parts = [b"--" + boundary + newline(dice) + message(dice, depth - 1) for _ in range(dice.randrange(4))]
    return (
        b"".join(lines)
        + newline(dice)
        + newline(dice).join(parts)
        + b"\r\n--"
        + boundary
        + dice.choice([b"--\r\n", b"\r\n", b""])
    )


def field(dice: random.Random) -> bytes:
    name = dice.choice(FIELDS).encode()
    value = b" ".join(dice.choice(VALUES) for _ in range(dice.choice([1, 1, 1, 2, 5])))
    return dice.choice([b"%s: %s", b"%s:%s", b"%s %s", b"%s:\r\n %s"]) % (name, value) + newline(dice)


def body(dice: random.Random) -> bytes:
    content = b"".join(dice.choice(BODIES) for _ in range(dice.randrange(5)))
    return b64encode(content) if dice.random() < 0.2 else content


def newline(dice: random.Random) -> bytes:
    return dice.choice([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"])


def damaged(dice: random.Random, content: bytes) -> bytes:
    """Return ``content`` cut off, with bytes changed or doubled, or unchanged."""
    if not content or dice.random() < 0.4:
        return content
    at = dice.randrange(len(content))
    return dice.choice(
        [
            content[:at],
            content[at:],
            content[:at] + bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9))) + content[at:],
            content[:at] + content[at // 2 : at] + content[at:],
        ]
    )


def is_storable(found: ParsedMessage) -> bool:
    """Return whether PostgreSQL can store all texts of a message, none of which is longer than a megabyte."""
    return all("\0" not in text and text.encode() and len(text) <= 1 << 20 for text in texts(astuple(found)) if text)


def texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from texts(each)
