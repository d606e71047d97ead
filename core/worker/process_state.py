"""The state of a process that a job can change: the kinds of state, how each is read, and how it is restored.

Every kind is read after each run, so reading must be cheap. Only the working directory needs a system call each time.
The thread keeps the interpreter's lock during that call: if it released the lock, it would have to wait for the lock
again. The umask is read once a second from a file in /proc, since the system call that returns the umask also changes
it.
"""

import ctypes
import gc
import locale
import logging
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
UMASK = re.compile(r"^Umask:\s*([0-7]+)$", re.MULTILINE)
UMASK_SECONDS = 1.0
#: The longest path that the kernel returns, in bytes (PATH_MAX of limits.h).
LONGEST_PATH = 4096
NUMBER = re.compile(r"\d+")
#: The packages whose threads belong to the service, and stay.
OWN_THREADS = ("core.", "dramatiq.")
OWN_NAME = "rota-"

root = logging.getLogger()
ours = logging.getLogger("rota.run")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of process state. A kind without ``put_back`` is not restored, since a library may need the change."""

    name: str
    read: Callable[[], Any]
    put_back: Callable[[Any], object] | None = None
    #: Describes the change for the log. The text has no values, which may be secret. It is empty if there is nothing to
    #: report.
    tell: Callable[[Any, Any], str] | None = None
    #: Whether ``read`` returns the state of this moment. If it does, the run that made a change is known.
    is_current: bool = True


class Folder:
    """The working directory; None if it has been removed."""

    def __init__(self) -> None:
        getcwd = ctypes.PyDLL(None).getcwd  # unlike ``os.getcwd``, it keeps the interpreter's lock
        getcwd.restype = ctypes.c_char_p
        room, size = ctypes.create_string_buffer(LONGEST_PATH), ctypes.c_size_t(LONGEST_PATH)
        #: Returns the path of the working directory.
        self.read: Callable[[], bytes | None] = partial(getcwd, room, size)

    def put_back(self, path: bytes | None) -> None:
        """Change back to the directory ``path``."""
        if path is not None:
            os.chdir(path)


class Umask:
    """The umask as it was within the last second; None if the system does not report it."""

    def __init__(self) -> None:
        self._value: int | None = None
        self._read_at = float("-inf")

    def read(self) -> int | None:
        """Return the umask. Read it again if the last reading is at least a second old."""
        now = time.monotonic()
        if now >= self._read_at + UMASK_SECONDS:
            self._read_at = now
            self._value = self._told()
        return self._value

    def put_back(self, value: int | None) -> None:
        """Set the umask."""
        if value is not None:
            os.umask(value)
            self._value = value

    def _told(self) -> int | None:
        try:
            found = UMASK.search(STATUS.read_text())
        except OSError:
            return None
        return int(found[1], 8) if found else None


class Shield:
    """The standard stream that jobs see. If a job closes it, the log and other jobs can still write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        """Write ``text``. Raises ValueError after a job has closed this stream."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._stream.write(text)

    def close(self) -> None:
        """Refuse further writes."""
        self.closed = True


class Stream:
    """``sys.stdout`` or ``sys.stderr``, behind a ``Shield``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stream = getattr(sys, name)
        self.put_back()

    def read(self) -> tuple[Any, bool]:
        """Return the stream, and whether it is closed."""
        stream = getattr(sys, self._name)
        return stream, getattr(stream, "closed", False)

    def put_back(self, _before: object = None) -> None:
        """Replace the stream in ``sys`` by a new ``Shield`` around the original stream."""
        setattr(sys, self._name, Shield(self._stream) if self._stream is not None else None)


def logging_state() -> tuple[Any, ...]:
    """Return the handlers and the level of the log, and whether it is disabled."""
    return (*root.handlers, root.level, root.manager.disable, ours.disabled)


def put_back_logging(before: tuple[Any, ...]) -> None:
    """Restore the log's handlers and level, and enable all loggers, since ``dictConfig`` may disable some."""
    *handlers, level, disabled, _ = before
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.disable(disabled)
    for logger in root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


class Threads:
    """The threads that do not belong to the service. They are listed only when the number of threads has changed."""

    def __init__(self) -> None:
        self._count = 0
        self._listed: frozenset[threading.Thread] = frozenset()

    def read(self) -> frozenset[threading.Thread]:
        """Return the live threads that do not belong to the service."""
        count = threading.active_count()
        if count != self._count:
            self._count = count
            self._listed = frozenset(thread for thread in threading.enumerate() if not is_own(thread))
        return self._listed


def is_own(thread: threading.Thread) -> bool:
    """Return whether a thread belongs to the service."""
    return thread.name.startswith(OWN_NAME) or type(thread).__module__.startswith(OWN_THREADS)


def come(before: frozenset[threading.Thread], now: frozenset[threading.Thread]) -> str:
    """Return the names of new threads, without the numbers that Python adds, or an empty text."""
    names = ", ".join(sorted({NUMBER.sub("N", thread.name) for thread in now - before}))
    return f"threads {names}" if names else ""


def variables(before: dict[Any, Any], now: dict[Any, Any]) -> str:
    """Return the names of the environment variables that differ."""
    changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    return "environment variables " + ", ".join(sorted(os.fsdecode(name) for name in changed))


def kinds() -> tuple[Kind, ...]:
    """Return all kinds of state that are checked in this process."""
    folder, umask, stdout, stderr = Folder(), Umask(), Stream("stdout"), Stream("stderr")
    environ: dict[Any, Any] = vars(os.environ)["_data"]  # a copy of os.environ would decode every variable
    return (
        Kind("working directory", folder.read, folder.put_back),
        Kind("umask", umask.read, umask.put_back, is_current=False),
        Kind("locale", partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
        Kind("default socket timeout", socket.getdefaulttimeout, socket.setdefaulttimeout),
        Kind("garbage collector", gc.isenabled, lambda is_on: gc.enable() if is_on else gc.disable()),
        Kind("sys.stdout", stdout.read, stdout.put_back),
        Kind("sys.stderr", stderr.read, stderr.put_back),
        Kind("logging", logging_state, put_back_logging),
        Kind("environment variables", environ.copy, tell=variables),
        Kind("sys.path", sys.path.copy),
        Kind("warnings filters", lambda: list(warnings.filters)),
        Kind("threads", Threads().read, tell=come),
    )
