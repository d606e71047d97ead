"""Turns bytes of any charset into text that PostgreSQL can store."""

import binascii
import codecs
import html
import re

#: The charsets of text, by the names that Python gives them. Python's other codecs are not charsets of mail: ``zlib``
#: would unpack data, and ``punycode`` takes time that grows with the square of the length.
CHARSETS = re.compile(
    r"ascii|utf-(7|8|16|32)|iso(8859|2022)|cp\d|koi8|gb|big5|euc_|shift_jis|mac-|hz|johab|tis-620|ptcp"
)
LONGEST_CHARSET = 40
#: Control characters except tab and newline, and lone surrogates.
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\ud800-\udfff]")
NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
LINE_ENDS = re.compile(r"\r\n?|\u2028|\u2029")
BLANK_LINES = re.compile(r"\n\s*\n\s*")
#: The elements whose content is not for readers.
HIDDEN = {"script", "style", "head", "title"}
#: The elements that begin or end a line.
ENDS_LINE = {"br", "p", "div", "tr", "li", "ul", "ol", "table", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "hr"}
TAG = re.compile(r"/?[A-Za-z][A-Za-z0-9]*")


def decode(content: bytes, charset: str) -> str:
    """Return ``content`` as text: in its charset; if that is unknown, in UTF-8; and if it is not UTF-8, in Latin-1."""
    if is_charset(charset):
        return content.decode(charset, "replace")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def is_charset(name: str) -> bool:
    """Return whether Python knows the charset ``name``."""
    if not name.isascii() or "\0" in name or len(name) > LONGEST_CHARSET:
        return False
    try:
        return CHARSETS.match(codecs.lookup(name).name) is not None
    except LookupError:
        return False


def cleaned(text: str) -> str:
    """Return ``text`` with plain line ends, without characters that PostgreSQL or a terminal cannot take."""
    return UNFIT.sub("", LINE_ENDS.sub("\n", text))


def on_one_line(text: str, most: int) -> str:
    """Return at most ``most`` characters of ``text``, without line breaks."""
    return " ".join(cleaned(text[: 4 * most]).split())[:most]


def untransferred(content: bytes, encoding: str) -> bytes:
    """Return the bytes without their transfer encoding. An unknown encoding is ignored."""
    if encoding == "base64":
        digits = NOT_BASE64.sub(b"", content.partition(b"=")[0])
        whole = digits[:-1] if len(digits) % 4 == 1 else digits
        return binascii.a2b_base64(whole + b"=" * (-len(whole) % 4))
    if encoding == "quoted-printable":
        return binascii.a2b_qp(content)
    return content


def transferred_size(size: int, encoding: str) -> int:
    """Return about how many bytes ``size`` encoded bytes are. An attachment is not decoded to find that out."""
    return size * 3 // 4 if encoding == "base64" else size


def text_of_html(source: str) -> str:
    """Return the text that a reader sees of ``source``, without tags. The time is proportional to the length."""
    shown, hidden = [], ""
    first, *tags = source.split("<")
    shown.append(first)
    for piece in tags:
        found = TAG.match(piece)
        if found is None and not piece.startswith(("!", "?")):
            if not hidden:
                shown.append("<" + piece)
            continue
        name = found[0].lower() if found else ""
        after = piece.partition(">")[2]
        hidden = "" if name == f"/{hidden}" else hidden or (name if name in HIDDEN else "")
        if not hidden:
            shown.append(("\n" if name.removeprefix("/") in ENDS_LINE else "") + after)
    return BLANK_LINES.sub("\n\n", html.unescape("".join(shown))).strip()
