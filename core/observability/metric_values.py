"""Keeps the values of metrics in files that are mapped into memory. Allocates disk space before it is written.

prometheus_client maps sparse files. If the disk is full, writing to a new page ends the process with SIGBUS. So if
there is no space, Rota keeps the values only in memory, and no longer serves them.
"""

import mmap
import os
import stat
import struct
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

from core.observability.events import MetricsGivenUp, emit

#: The initial size of a file, in bytes, as in prometheus_client.
FIRST_SIZE = 1 << 16
#: The most bytes of an entry in addition to its key: its length, padding and two doubles.
BESIDE_KEY = 4 + 8 + 16
#: The content of a file without entries: the number of used bytes, and padding.
EMPTY = struct.pack("i4x", 8)


def have_room() -> None:
    """Make prometheus_client allocate its files in this process. Call this before the first metric is created."""
    values.MmapedDict = Allocated  # type: ignore[attr-defined]
    values.ValueClass = values.MultiProcessValue(_Here.process_id)


class _Here:
    """Stores the id of this process, since each change of a value needs the id, and ``os.getpid`` is a system call."""

    pid = os.getpid()

    @classmethod
    def process_id(cls) -> int:
        return cls.pid

    @classmethod
    def note(cls) -> None:
        cls.pid = os.getpid()


os.register_at_fork(after_in_child=_Here.note)


class StrictlyAllocated(MmapedDict):
    """A file whose pages are allocated before they are mapped. Raises OSError if the disk is full."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        self.path = Path(filename)
        super().__init__(filename if read_mode else open_allocated(self.path), read_mode)

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + BESIDE_KEY > self._capacity:
            self._grow(self._capacity * 2)
        super()._init_value(key)

    def _grow(self, capacity: int) -> None:
        allocate(self._f.fileno(), capacity)
        self._capacity, self._m = capacity, mmap.mmap(self._f.fileno(), capacity)


class Allocated(StrictlyAllocated):
    """A file whose pages are allocated before they are mapped. If the disk is full, the values stay in memory."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        self._is_in_memory = False
        try:
            super().__init__(filename, read_mode)
        except OSError as error:
            self._give_up(error)
            self._positions: dict[str, int] = {}
            self._used = len(EMPTY)
            self._hold(EMPTY, FIRST_SIZE)

    def _grow(self, capacity: int) -> None:
        try:
            if not self._is_in_memory:
                super()._grow(capacity)
                return
        except OSError as error:
            self._f.close()
            self._give_up(error)
        self._hold(self._m[: self._used], capacity)

    def _hold(self, values: bytes, capacity: int) -> None:
        self._capacity, self._m = capacity, mmap.mmap(-1, capacity)
        self._m[: len(values)] = values

    def _give_up(self, error: OSError) -> None:
        give_up(self.path, error)
        self._is_in_memory, self._f = True, BytesIO()


def open_allocated(path: Path) -> int:
    """Open a file that belongs to this user, without following a link, and allocate its first page. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to another user")
        allocate(descriptor, max(os.fstat(descriptor).st_size, FIRST_SIZE))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def allocate(descriptor: int, size: int) -> None:
    """Allocate ``size`` bytes on the disk. Do nothing on a system without this call."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)


def give_up(path: Path, error: OSError) -> None:
    """Log the error once, and remove the file: it cannot be updated, and its old values would be served for ever."""
    with suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            path.unlink()
    _say(str(path.parent), error.strerror or str(error))


@cache
def _say(folder: str, why: str) -> None:
    emit(MetricsGivenUp(f"{folder}: {why}"))
