"""A log handler that never blocks: lines wait in memory for a thread that writes them.

The program that reads a log can end or be too slow (``rota worker 2>&1 | head``, a log shipper that hangs, a terminal
that is stopped). Then a handler that writes in the caller's thread blocks every thread that logs. This handler drops
and counts lines if too many wait. The next line that is written says how many were dropped.

Unlike the handlers of ``logging``, this handler has no lock that a thread holds while it formats or writes. An
interruption at a time limit can reach a thread just after it has taken such a lock, and then no other thread could log.
"""

import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from core import forks
from core.observability.events import LogDropped

STDERR = 2
#: The most characters that may wait to be written. A very busy process logs about as much in a second.
MOST_WAITING = 4 * 2**20
#: The most characters that the thread takes from the queue at once.
CHUNK = 32 * 2**10
#: At its end, a process waits this many seconds for its last lines to be written.
FLUSH_SECONDS = 1.0


class Stream(Protocol):
    """The stream to which lines are written. Both methods may block, and may raise OSError or ValueError."""

    def write(self, text: str, /) -> object:
        """Write ``text``."""

    def flush(self) -> object:
        """Write buffered text."""


class Descriptor:
    """Rota's own descriptor of standard error, which stays open if a job closes ``sys.stderr``."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)

    def write(self, text: str, /) -> None:
        """Write ``text``."""
        left = text.encode(errors="backslashreplace")
        while left:
            left = left[os.write(self._descriptor, left) :]

    def flush(self) -> None:
        """Do nothing, since there is no buffer."""


def pieces(lines: Sequence[str]) -> Iterator[str]:
    """Join lines to pieces that a pipe accepts in one write. Other processes may write between two pieces."""
    piece, size = "", 0
    for line in lines:
        added = size_of(line)
        if piece and size + added > select.PIPE_BUF:
            yield piece
            piece, size = "", 0
        piece, size = piece + line, size + added
    yield piece


def size_of(text: str) -> int:
    """Return the size of a line in bytes, as it is written."""
    return len(text) if text.isascii() else len(text.encode(errors="backslashreplace"))


class Sink(logging.Handler):
    """Formats lines in the caller's thread, and writes them in its own thread, which starts with the first line."""

    def __init__(self, stream: Stream, on_dropped: Callable[[int], None]) -> None:
        super().__init__()
        self._stream = stream
        self._on_dropped = on_dropped
        self._begin()

    def createLock(self) -> None:
        """Make no lock: lines go into a queue, which any thread may use."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Accept the line, unless a filter refuses it."""
        is_wanted = bool(self.filter(record))
        if is_wanted:
            self.emit(record)
        return is_wanted

    def _begin(self) -> None:
        self._pid = os.getpid()
        #: Lines, and events to set when all lines before them are written.
        self._lines: SimpleQueue[str | threading.Event] = SimpleQueue()
        #: The number of characters that were accepted so far, and the number of these that were written or dropped.
        self._taken = self._written = 0
        #: The number of lines that were dropped, and the number of these that the log has reported.
        self._dropped = self._told = 0
        self._thread: threading.Thread | None = None
        #: Held only while numbers are added. No function is called meanwhile, so no interruption can arrive.
        self._counting = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Accept the line, or drop it. Never blocks and never raises."""
        if self._pid != os.getpid():  # after a fork, the parent writes its waiting lines
            self._begin()
        try:
            line = self.format(record) + "\n"
        except Exception as error:  # noqa: BLE001 — a log line must not fail a run
            line = f"{record.name}: a line could not be formatted: {type(error).__name__}\n"
        self._take_on(line)

    def _take_on(self, line: str) -> None:
        if forks.is_child():  # a child may end at any time, without the interpreter's shutdown
            with suppress(OSError, ValueError):
                self._stream.write(line)
                self._stream.flush()
            return
        size = len(line)
        with self._counting:
            fits = self._taken - self._written + size <= MOST_WAITING
            if fits:
                self._taken += size
        if not fits:
            self._drop(1)
            return
        self._lines.put(line)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="rota-log", daemon=True)
        with self._counting:
            is_first = self._thread is None
            if is_first:
                self._thread = thread
        if is_first:
            try:
                thread.start()
            except RuntimeError:  # no thread can be started now; the next line tries again
                self._thread = None

    def flush(self, within: float = FLUSH_SECONDS) -> None:
        """Wait until everything is written, at most ``within`` seconds. The interpreter calls this at exit."""
        if self._pid != os.getpid() or self._thread is None:  # nothing was logged in this process yet
            return
        written = threading.Event()
        self._lines.put(written)
        written.wait(within)

    def _run(self) -> None:
        while True:
            lines, waiting = self._next()
            size = sum(map(len, lines))
            self._write(lines)
            with self._counting:
                self._written += size
            for each in waiting:
                each.set()

    def _next(self) -> tuple[list[str], list[threading.Event]]:
        lines: list[str] = []
        waiting: list[threading.Event] = []
        size, entry = 0, self._lines.get()
        with suppress(Empty):
            while True:
                if isinstance(entry, str):
                    lines.append(entry)
                    size += len(entry)
                else:
                    waiting.append(entry)
                if size >= CHUNK:
                    break
                entry = self._lines.get_nowait()
        return lines, waiting

    def _write(self, lines: list[str]) -> None:
        try:
            for piece in pieces(lines):
                self._stream.write(piece)
                self._stream.flush()
            self._tell_dropped()
        except (OSError, ValueError):  # the reader has gone, the disk is full, or the stream is closed
            self._drop(len(lines))

    def _tell_dropped(self) -> None:
        dropped = self._dropped - self._told
        if dropped:
            self._told += dropped
            told = logging.makeLogRecord(
                {"name": "rota.log", "levelno": LogDropped.level, "levelname": "WARNING", "msg": LogDropped(dropped)}
            )
            self._stream.write(self.format(told) + "\n")
            self._stream.flush()

    def _drop(self, lines: int) -> None:
        with self._counting:
            self._dropped += lines
        with suppress(Exception):  # the disk may be full, so that the metric cannot be written
            self._on_dropped(lines)


def standard_error() -> Stream | None:
    """Return the default stream of this process's log, or None without standard error."""
    if sys.stderr is None or sys.stderr is not sys.__stderr__:
        return sys.stderr
    try:
        return Descriptor(STDERR)
    except OSError:
        return None
