"""Splits a message into its parts, line by line. Keeps the headers of each part, and the beginning of each text."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from typing import IO

from plugins.mail.parsing import headers as fields
from plugins.mail.parsing.limits import Limits
from plugins.mail.parsing.text import on_one_line

#: A longer line is read in pieces.
LONGEST_LINE = 64 << 10
LONGEST_BOUNDARY = 200
LONGEST_TYPE = 100
TEXTS = {"text/plain", "text/html"}


@dataclass(slots=True)
class Part:
    """A part that contains no other parts."""

    headers: Message
    content_type: str
    #: The disposition: ``attachment``, ``inline`` or empty.
    disposition: str
    encoding: str
    has_name: bool
    size: int = 0
    body: list[bytes] = field(default_factory=list)

    @property
    def is_text(self) -> bool:
        """Whether the part is meant to be read, not an attachment."""
        return self.content_type in TEXTS and self.disposition != "attachment" and not self.has_name


class Splitter:
    """Takes the lines of a message. ``parts`` has the parts that contain no other parts.

    At any time, the splitter is within headers, within the body of ``part``, or within lines that belong to no part.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.headers: Message | None = None
        self.parts: list[Part] = []
        self.problems: list[str] = []
        self._count = 0
        self._boundaries: list[bytes] = []
        #: For each line that is a boundary: how many boundaries surround it, and whether it is the last of its own.
        self._marks: dict[bytes, tuple[int, bool]] = {}
        self._head: list[bytes] | None = []
        self._head_size = 0
        self._part: Part | None = None

    def read(self, file: IO[bytes]) -> None:
        """Take all lines of ``file``."""
        is_start = True
        while line := file.readline(LONGEST_LINE):
            self._take(line, is_start)
            is_start = line.endswith(b"\n")
        self._end_part()

    def _take(self, line: bytes, is_start: bool) -> None:
        if is_start and line.startswith(b"--") and (mark := self._marks.get(line.rstrip())) is not None:
            self._cross(*mark)
        elif self._head is not None:
            self._take_header(line, is_start)
        elif self._part is not None:
            self._part.size += len(line)
            if self._part.is_text and self._part.size <= self.limits.text_bytes:
                self._part.body.append(line)

    def _cross(self, depth: int, is_last: bool) -> None:
        """Handle a boundary: all parts within it end, and the next part begins if there is one."""
        self._end_part()
        self._keep_boundaries(depth if is_last else depth + 1)
        if not is_last:
            self._head, self._head_size = [], 0

    def _take_header(self, line: bytes, is_start: bool) -> None:
        assert self._head is not None
        if is_start and not line.strip(b"\r\n"):
            self._end_head()
            return
        self._head_size += len(line)
        if self._head_size <= self.limits.header_bytes:
            self._head.append(line if is_start else b" " + line)
        else:
            self._note(f"headers of more than {self.limits.header_bytes} bytes")

    def _end_head(self) -> None:
        lines, self._head = self._head or [], None
        self._count += 1
        if self._count > self.limits.parts:
            self._note(f"more than {self.limits.parts} parts")
            return
        headers = fields.read(lines)
        if self.headers is None:
            self.headers = headers
        boundary = fields.parameter(headers, "content-type", "boundary").encode(errors="replace")[:LONGEST_BOUNDARY]
        content_type = type_of(headers)
        if content_type.startswith("multipart/") and boundary.strip():
            if len(self._boundaries) < self.limits.depth:
                self._keep_boundaries(len(self._boundaries), boundary.rstrip())
                return
            self._note(f"parts nested more than {self.limits.depth} deep")
        self._part = part_of(headers, content_type)

    def _end_part(self) -> None:
        if self._head is not None:
            self._end_head()
        if self._part is not None:
            self.parts.append(self._part)
            if self._part.is_text and self._part.size > self.limits.text_bytes:
                self._note(f"text of more than {self.limits.text_bytes} bytes")
        self._part = None

    def _keep_boundaries(self, count: int, *more: bytes) -> None:
        self._boundaries = [*self._boundaries[:count], *more]
        self._marks = {}
        for depth, boundary in enumerate(self._boundaries):  # of two equal boundaries, the inner one counts
            self._marks[b"--" + boundary] = (depth, False)
            self._marks[b"--" + boundary + b"--"] = (depth, True)

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def part_of(headers: Message, content_type: str) -> Part:
    """Return the part that these headers begin. A part that should contain parts but names no boundary is text."""
    disposition = on_one_line(fields.value(headers, "content-disposition").partition(";")[0], LONGEST_TYPE).lower()
    encoding = on_one_line(fields.value(headers, "content-transfer-encoding"), LONGEST_TYPE).lower()
    name = fields.parameter(headers, "content-disposition", "filename") or fields.parameter(
        headers, "content-type", "name"
    )
    is_container = content_type.startswith("multipart/")
    return Part(headers, "text/plain" if is_container else content_type, disposition, encoding, bool(name))


def type_of(headers: Message) -> str:
    """Return the content type, in lower case."""
    return on_one_line(fields.attempt(headers.get_content_type, "text/plain"), LONGEST_TYPE)


def text_parts(parts: list[Part], content_type: str) -> Iterator[Part]:
    """Yield the parts of the message's text in this content type."""
    return (part for part in parts if part.is_text and part.content_type == content_type)
