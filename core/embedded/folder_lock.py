"""A lock on a folder, so that only one starter uses the folder."""

import fcntl
import os
from pathlib import Path

from core.errors import EmbeddedServerError


class FolderLock:
    """Prevents two processes, or two objects, from serving one folder at a time. The lock ends with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        return self._fd is not None

    def take(self, folder: Path) -> None:
        """Take the lock, or keep it. Raises EmbeddedServerError, naming ``folder``, if another process holds it."""
        if self._fd is not None:
            return
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            advice = "start as the owner of that file, or use another folder"
            raise EmbeddedServerError(f"cannot serve {folder}: {error}; {advice}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 20).decode().strip() or "unknown"
            os.close(fd)
            raise EmbeddedServerError(
                f"{folder} is already being served by process {holder}; stop that process first, or use another folder"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd is not None:
            # Closing the file is not enough if a forked child still has the descriptor.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = None
