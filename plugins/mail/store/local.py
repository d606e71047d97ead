"""A local folder as a store, for installations without S3.

Every folder is opened by its name, relative to its open parent (openat(2)), with O_NOFOLLOW, so a symlink below the
root is never followed. An object is written under a temporary name, synced, and renamed to its own name; then its
folder is synced. After a crash or a power cut, the object is either complete or does not exist. A temporary name that a
crash left begins with a dot, and is listed, so that a check finds it.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import IO

from plugins.mail.store.errors import NoSuchObject, StoreAddressError, StoreAway, StoreError, StoreFull, StoreRefused
from plugins.mail.store.keys import KEY, prefix_steps, steps
from plugins.mail.store.store import StoredObject

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: With O_NONBLOCK, a named pipe in the place of an object does not block the reader.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Only the service may read messages.
FOLDER_MODE, FILE_MODE = 0o700, 0o600
COPIED_AT_ONCE = 1 << 20
#: ``delete`` may remove a folder just after ``put`` has made it. Then ``put`` makes it again.
TRIES = 20

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
NOT_OURS = {errno.ELOOP, errno.ENOTDIR}


class LocalStore:
    """Stores objects as files below ``root``, which must exist."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, key: str, file: IO[bytes]) -> None:
        """Write the object, sync it, rename it, and sync its folder."""
        *folders, name = steps(key)
        with _explained(key), self._room_for(folders, name) as (way, temporary, written):
            try:
                with os.fdopen(written, "wb", buffering=0) as copy:
                    shutil.copyfileobj(file, copy, COPIED_AT_ONCE)
                    os.fsync(copy.fileno())
                os.rename(temporary, name, src_dir_fd=way[-1], dst_dir_fd=way[-1])
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=way[-1])
                raise
            for folder in reversed(way):  # one of these folders may be new
                _sync(folder)

    def open(self, key: str) -> IO[bytes]:
        """Return the object with this key."""
        *folders, name = steps(key)
        with _explained(key), self._descended(folders) as way:
            file = os.fdopen(os.open(name, READ, dir_fd=way[-1]), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise NoSuchObject(key)
        return file

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, and the folders that become empty."""
        for folders, group in groupby(sorted(map(steps, keys)), key=lambda names: names[:-1]):
            with _explained("/".join(folders)), suppress(FileNotFoundError), self._descended(folders) as way:
                for *_, name in group:
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=way[-1])
                _sync(way[-1])
                _remove_empty(way, folders)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the files below ``prefix`` that have names of objects. Other files are ignored."""
        with _explained(prefix), suppress(FileNotFoundError), self._descended(prefix_steps(prefix)) as way:
            yield from _walk(way[-1], prefix)

    @contextmanager
    def _room_for(self, folders: Sequence[str], name: str) -> Iterator[tuple[Sequence[int], str, int]]:
        """Yield the open folders from the root on, and a new file in the last folder, with its temporary name."""
        temporary = f".{name}.{secrets.token_hex(8)}"
        for left in reversed(range(TRIES)):
            with ExitStack() as stack:
                try:
                    way = stack.enter_context(self._descended(folders, make=True))
                    written = os.open(temporary, NEW_FILE, FILE_MODE, dir_fd=way[-1])
                except FileNotFoundError:  # a folder was empty, and was removed
                    if left:
                        continue
                    raise
                yield way, temporary, written
                return

    @contextmanager
    def _descended(self, folders: Sequence[str], *, make: bool = False) -> Iterator[Sequence[int]]:
        """Yield the open folders from the root to the last of ``folders``.

        Raises FileNotFoundError if one is missing.
        """
        with ExitStack() as stack:
            way = [self._opened(stack, None, str(self.root))]
            for name in folders:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, FOLDER_MODE, dir_fd=way[-1])
                way.append(self._opened(stack, way[-1], name))
            yield way

    def _opened(self, stack: ExitStack, parent: int | None, name: str) -> int:
        try:
            folder = os.open(name, FOLDER, dir_fd=parent)
        except OSError as error:
            if parent is None and error.errno in {errno.ENOENT, *NOT_OURS}:
                raise StoreAddressError(f"names something that is not a folder: {name!r}") from error
            raise
        stack.callback(os.close, folder)
        return folder


def _walk(folder: int, above: str) -> Iterator[StoredObject]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not KEY.fullmatch(entry.name):
                continue
            with suppress(FileNotFoundError):  # the file was deleted meanwhile
                if not entry.is_dir(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    yield StoredObject(above + entry.name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
                    continue
                inner = os.open(entry.name, FOLDER, dir_fd=folder)
                try:
                    yield from _walk(inner, f"{above}{entry.name}/")
                finally:
                    os.close(inner)


def _remove_empty(way: Sequence[int], folders: Sequence[str]) -> None:
    with suppress(OSError):  # the folder is not empty, or gone already
        for parent, name in reversed(list(zip(way, folders, strict=False))):
            os.rmdir(name, dir_fd=parent)


def _sync(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system does not support it
            raise


@contextmanager
def _explained(key: str) -> Iterator[None]:
    """Raise an error of the operating system as a StoreError."""
    try:
        yield
    except OSError as error:
        raise as_store_error(key, error) from error


def as_store_error(key: str, error: OSError) -> StoreError:
    told = f"{key!r}: {error.strerror}"
    if error.errno == errno.ENOENT:
        return NoSuchObject(key)
    if error.errno in FULL:
        return StoreFull(told)
    if error.errno in REFUSED:
        return StoreRefused(told)
    if error.errno in NOT_OURS:
        return StoreError(f"{key!r} leads over a symlink, or over a file where a folder should be; nothing was changed")
    return StoreAway(told)
