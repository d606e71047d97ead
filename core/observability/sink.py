"""A log handler that never blocks: lines wait in memory for a thread that writes them.

A log's reader can go away or fall behind (``rota worker 2>&1 | head``, a log shipper that hangs, a terminal that is
stopped). A handler that writes in the caller's thread then stops every thread that logs. Here, if the memory is full, a
line is dropped and counted, and the next written line says how many were dropped.
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
#: The most characters that may wait, about a second of a very busy process.
MOST_WAITING = 4 * 2**20
#: The most characters that the thread takes at once.
CHUNK = 32 * 2**10
#: How long the end of a process waits for its last lines to be written, in seconds.
FLUSH_SECONDS = 1.0


class Stream(Protocol):
    """The target of lines. Both methods may block, and may raise OSError or ValueError."""

    def write(self, text: str, /) -> object:
        """Write ``text``."""

    def flush(self) -> object:
        """Write buffered text."""


class Descriptor:
    """Our own descriptor of standard error, which stays open if a job closes ``sys.stderr``."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)

    def write(self, text: str, /) -> None:
        """Write ``text``."""
        left = text.encode(errors="backslashreplace")
        while left:
            left = left[os.write(self._descriptor, left) :]

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


def pieces(lines: Sequence[str]) -> Iterator[str]:
    """Put lines together, as many as a pipe takes in one piece; other processes may write between two pieces."""
    piece, size = "", 0
    for line in lines:
        added = size_of(line)
        if piece and size + added > select.PIPE_BUF:
            yield piece
            piece, size = "", 0
        piece, size = piece + line, size + added
    yield piece


def size_of(text: str) -> int:
    """The size of a line in bytes, as it is written."""
    return len(text) if text.isascii() else len(text.encode(errors="backslashreplace"))


class Sink(logging.Handler):
    """Formats in the caller's thread, and writes in its own thread, which starts with the first line."""

    def __init__(self, stream: Stream, on_dropped: Callable[[int], None]) -> None:
        super().__init__()
        self._stream = stream
        self._on_dropped = on_dropped
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lines: SimpleQueue[str] = SimpleQueue()
        #: How many characters were accepted so far, and how many of these were written or dropped.
        self._taken = self._written = 0
        #: How many lines were dropped, and how many of these the log has reported.
        self._dropped = self._told = 0
        self._is_all_written = threading.Event()
        self._is_all_written.set()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Accept the line, or drop it. Never blocks and never raises."""
        if self._pid != os.getpid():  # after a fork: the parent writes its waiting lines
            self._begin()
        try:
            line = self.format(record) + "\n"
        except Exception as error:  # noqa: BLE001 — a log line must not fail a run
            line = f"{record.name}: a line could not be formatted: {type(error).__name__}\n"
        self._take_on(line)

    def _take_on(self, line: str) -> None:
        if forks.is_child():  # it may end at any time, without the interpreter's shutdown
            with suppress(OSError, ValueError):
                self._stream.write(line)
                self._stream.flush()
            return
        if self._taken - self._written + len(line) > MOST_WAITING:
            self._drop(1)
            return
        self._taken += len(line)
        self._is_all_written.clear()
        self._lines.put(line)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="rota-log", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be started now; the next line tries again
            return
        self._thread = thread

    def flush(self) -> None:
        """Wait until everything is written, at most a second. The interpreter calls this at exit."""
        if self._pid != os.getpid():  # after a fork that has logged nothing
            return
        self._is_all_written.wait(FLUSH_SECONDS)

    def _run(self) -> None:
        while True:
            lines = [self._lines.get()]
            try:
                while sum(map(len, lines)) < CHUNK:
                    lines.append(self._lines.get_nowait())
            except Empty:
                pass
            self._write(lines)
            self._written += sum(map(len, lines))
            if self._written == self._taken:
                self._is_all_written.set()

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
        self._dropped += lines
        with suppress(Exception):  # metrics on a full disk
            self._on_dropped(lines)


def standard_error() -> Stream | None:
    """The default stream of this process's log; None without standard error."""
    if sys.stderr is None or sys.stderr is not sys.__stderr__:
        return sys.stderr
    try:
        return Descriptor(STDERR)
    except OSError:
        return None
