"""Handles forks in jobs. A child that a job forks loses the connections of the worker that it has inherited.

A child has a copy of every open file of its parent. While the child holds the socket of a PostgreSQL session, that
session and its locks stay, even if the parent ends. PostgreSQL also cannot distinguish the child's data from the
parent's. So the child replaces the worker's connections and pipes (``keep_from_children``) by the null device, under
the same file descriptors. Nothing is sent to a server then, and using such a file is an error. The child keeps all
other files.

Files are replaced only in children of a process that works on jobs, since the service forks its own processes before
that. A program that a job starts (``subprocess``) does not inherit these files, so it is not affected.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet

from psycopg2 import InterfaceError

#: The signals for which a worker has its own handlers. In a child, these signals have their default effect, and end it.
SIGNALS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
#: The errors of ``fileno()`` on a closed file (of psycopg2, of Python), and of ``os.dup2`` on -1.
CLOSED = (InterfaceError, ValueError, OSError)


class OpenFile(Protocol):
    """An open file, such as a socket, a pipe or a connection of psycopg2."""

    def fileno(self) -> int:
        """Return the file descriptor; -1 or an error once it is closed."""


class _Here:
    """The state of this process."""

    #: Whether this process works on jobs, so that a child which a job forks must give up the connections.
    is_working = False
    is_child = False


_private: WeakSet[OpenFile] = WeakSet()
_steps: list[Callable[[], None]] = []


def keep_from_children(file: OpenFile) -> None:
    """Replace ``file`` by the null device in every child that a job forks."""
    _private.add(file)


def in_children(step: Callable[[], None]) -> None:
    """Call ``step`` in each child that a job forks, after the files are replaced. ``step`` must not wait for a lock."""
    _steps.append(step)


def begin() -> None:
    """Remember that this process works on jobs from now on."""
    _Here.is_working = True


def end() -> None:
    """Remember that this process no longer works on jobs."""
    _Here.is_working = False


def is_working() -> bool:
    """Return whether this process works on jobs."""
    return _Here.is_working


def is_child() -> bool:
    """Return whether this process is a child that a job has forked, or a descendant of such a child."""
    return _Here.is_child


def _become_child() -> None:
    if not _Here.is_working:
        return
    _Here.is_child = True
    _lose_files()
    signal.set_wakeup_fd(-1)  # the parent uses the same pipe
    for number, handler in SIGNALS.items():
        signal.signal(number, handler)
    for step in _steps:
        step()


def _lose_files() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in list(_private):
        with suppress(*CLOSED):
            os.dup2(nothing, file.fileno(), inheritable=False)
    _private.clear()  # their numbers may be used for other files
    os.close(nothing)


os.register_at_fork(after_in_child=_become_child)
