"""The last lines that an attempt has logged, which are kept in the ledger if it does not succeed."""

from collections import deque

#: The most lines that are kept.
MOST_LINES = 50
#: The most characters of one line.
LONGEST_LINE = 1000
#: The most characters of all lines together.
LONGEST_TAIL = 10_000


class LogTail:
    """The last lines of one attempt. It costs nothing until the first line."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: deque[str] | None = None

    def add(self, line: str) -> None:
        """Add a line, and forget the oldest line if there are too many."""
        if self._lines is None:
            self._lines = deque(maxlen=MOST_LINES)
        left_out = len(line) - LONGEST_LINE
        self._lines.append(f"{line[:LONGEST_LINE]}… ({left_out} characters left out)" if left_out > 0 else line)

    @property
    def text(self) -> str | None:
        """The newest lines, as many whole lines as fit into ``LONGEST_TAIL``; None if nothing was logged."""
        kept: list[str] = []
        room = LONGEST_TAIL
        for line in reversed(tuple(self._lines or ())):
            room -= len(line) + 1
            if room < 0:
                break
            kept.append(line)
        return "\n".join(reversed(kept)) or None
