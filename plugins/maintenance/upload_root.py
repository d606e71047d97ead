"""Opens, lists and deletes only files and folders inside the upload root.

Paths are never passed to the system as a whole, since a symlink in a path could lead outside. The root is opened once.
From there, each folder is opened by its name, relative to its open parent (openat(2)), with O_NOFOLLOW. A file is
deleted relative to the open folder that contains it (unlinkat(2)). So:

- a symlink is never followed. In a folder that is being removed, the link itself is deleted. If there is a link where
  a folder is to be opened, it is refused;
- ``..``, absolute and empty names, and names with ``/`` or NUL in them, are refused before any system call;
- if a folder is replaced after it was opened, only the opened folder is emptied, and it is removed only if its name
  still leads to it (same device, same inode). rmdir(2) removes only empty folders;
- other devices, mounted within a folder that is being removed, are refused;
- of a file with several names (hard links), only the name inside the folder is deleted.

Names have the form of ``os.fsdecode``, which keeps bytes that are not UTF-8.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from plugins.maintenance.errors import UploadRootError, WallError

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: The errors of opening something other than a folder with O_NOFOLLOW and O_DIRECTORY.
NOT_A_FOLDER = {errno.ELOOP, errno.ENOTDIR}
NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}
#: The longest name of the common file systems, in bytes.
LONGEST_NAME = 255
#: The application makes no deeper tree than this. The number is limited, since each level needs an open folder.
DEEPEST = 64
#: While a folder is emptied, another process may add a file, and a listing may miss a file. So the folder is listed
#: again, at most this many times.
PASSES = 3


@contextmanager
def opened(root: Path | None) -> Iterator[int]:
    """Yield the upload root, as an open folder. Raises UploadRootError unless it is a folder that can be written to."""
    if root is None:
        raise UploadRootError("is not set; it is the folder below which the application keeps uploads")
    folder = _open_root(root)
    try:
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True):
            raise UploadRootError(f"names a folder that this user cannot write to: {str(root)!r}")
        yield folder
    finally:
        os.close(folder)


def _open_root(root: Path) -> int:
    try:
        return os.open(root, FOLDER)
    except OSError as error:
        raise UploadRootError(f"names {_what_is_wrong(root, error)}: {str(root)!r}") from error


def _what_is_wrong(root: Path, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "a folder that does not exist"
    if error.errno in NOT_A_FOLDER:
        return "a symlink, and must name the folder itself" if root.is_symlink() else "something that is not a folder"
    return f"a folder that cannot be opened ({error.strerror})"


def is_plain(name: str | bytes) -> bool:
    """Return whether ``name`` is the name of a single file or folder, not a longer path."""
    raw = os.fsencode(name)
    return raw not in {b"", b".", b".."} and b"/" not in raw and b"\0" not in raw and len(raw) <= LONGEST_NAME


def enter(folder: int, name: str) -> int:
    """Open the folder ``name`` in ``folder``. The caller closes it.

    Raises FileNotFoundError if there is no such folder, and WallError if the name is unsafe or does not name a folder.
    """
    if not is_plain(name):
        raise WallError("not a plain name")
    try:
        return os.open(name, FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno in NOT_A_FOLDER:
            raise WallError("a symlink or a file where a folder should be") from error
        raise


@contextmanager
def descended(root: int, names: Sequence[str]) -> Iterator[int | None]:
    """Open the folders with these ``names``, each in the one before, and yield the last; None if one is missing."""
    with ExitStack() as stack:
        folder: int | None = root
        for depth, name in enumerate(names, start=1):
            if folder is not None:
                folder = _step(folder, name, names[:depth])
            if folder is not None:
                stack.callback(os.close, folder)
        yield folder


def _step(folder: int, name: str, way: Sequence[str]) -> int | None:
    try:
        return enter(folder, name)
    except FileNotFoundError:
        return None
    except WallError as error:
        raise WallError(f"{'/'.join(way)!r} below the upload root: {error}") from error


def remove_tree(parent: int, name: str) -> int:
    """Remove the folder ``name`` in ``parent`` and its content. Return the number of removed files and links.

    A missing folder is not an error. If something cannot be removed, everything else is removed first; then the first
    error, an OSError or a WallError, is raised.
    """
    removal = _Removal()
    removal.remove(parent, name, DEEPEST)
    return removal.files


def sync(folder: int) -> None:
    """Write the deletions in ``folder`` to the disk, so that a power cut does not undo them."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system does not support it
            raise


class _Removal:
    def __init__(self) -> None:
        self.files = 0

    def remove(self, parent: int, name: str, deepest: int, device: int | None = None) -> None:
        try:
            folder = enter(parent, name)
        except FileNotFoundError:
            return
        try:
            opened = os.fstat(folder)
            if device is not None and opened.st_dev != device:
                raise WallError("another device is mounted here")
            if not deepest:
                raise WallError(f"deeper than {DEEPEST} folders")
            self._remove_opened(parent, name, folder, opened, deepest)
        finally:
            os.close(folder)

    def _remove_opened(self, parent: int, name: str, folder: int, opened: os.stat_result, deepest: int) -> None:
        for passes_left in reversed(range(PASSES)):
            self._empty(folder, opened.st_dev, deepest)
            try:
                _remove_folder(parent, name, opened)
                break
            except OSError as error:
                if not passes_left or error.errno not in NOT_EMPTY:
                    raise

    def _empty(self, folder: int, device: int, deepest: int) -> None:
        problem: OSError | WallError | None = None
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    self._remove_entry(folder, entry, device, deepest)
                except (OSError, WallError) as error:
                    problem = problem or error
        if problem is not None:
            raise problem

    def _remove_entry(self, folder: int, entry: os.DirEntry[str], device: int, deepest: int) -> None:
        if entry.is_dir(follow_symlinks=False):
            self.remove(folder, entry.name, deepest - 1, device)
        elif unlink(folder, entry.name):
            self.files += 1


def unlink(folder: int, name: str) -> bool:
    """Delete the file or link ``name`` in ``folder``. Return False if it is gone already."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def _remove_folder(parent: int, name: str, opened: os.stat_result) -> None:
    with suppress(FileNotFoundError):
        now = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino):
            raise WallError("the folder was replaced while it was being emptied")
        os.rmdir(name, dir_fd=parent)
