"""Where ``rota web`` listens: a port, or a Unix socket."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import RotaError
from core.settings import Settings

#: Only the owner of the Unix socket and its group can connect to it.
MODE = 0o660
BACKLOG = 1024


@contextmanager
def opened(configured: Settings) -> Iterator[socket.socket]:
    """Yield a socket that listens. Raises RotaError, which names the settings, if the address cannot be used."""
    if configured.web_socket is None:
        with on_port(configured.web_host, configured.web_port) as listener:
            yield listener
        return
    listener = on_path(configured.web_socket)
    ours = mark(configured.web_socket)
    try:
        with listener:
            yield listener
    finally:
        with suppress(OSError):
            if mark(configured.web_socket) == ours:  # and not the file of a later process
                os.unlink(configured.web_socket)


def mark(path: Path) -> tuple[int, int]:
    """Return what tells a file from a later one of the same name, which may have the same number. Raises OSError."""
    found = os.stat(path)
    return found.st_ino, found.st_ctime_ns


def on_port(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port. Raises RotaError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio delays answers
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        said = f"cannot listen on {host}, port {port}: {error.strerror or error}"
        raise RotaError(f"{said}; set ROTA_WEB_HOST or ROTA_WEB_PORT") from None
    return listener


def on_path(path: Path) -> socket.socket:
    """Return a Unix socket that listens at ``path``. A file that a killed process has left is replaced.

    Raises RotaError.
    """
    try:
        remove_old(path)
        return bound(path)
    except OSError as error:
        raise RotaError(f"cannot listen on {path}: {error.strerror or error}; set ROTA_WEB_SOCKET") from None


def bound(path: Path) -> socket.socket:
    """Return a Unix socket that listens at ``path``. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        os.chmod(path, MODE)  # before anybody can connect
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def remove_old(path: Path) -> None:
    """Remove a socket on which no process listens. Raises RotaError if one does, and OSError if that is not known."""
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise RotaError(f"{path} exists, and is not a socket; set ROTA_WEB_SOCKET")
    with socket.socket(socket.AF_UNIX) as client:
        found = client.connect_ex(str(path))
    if found == 0:
        raise RotaError(f"another process listens on {path}; stop it, or set ROTA_WEB_SOCKET")
    if found != errno.ECONNREFUSED:  # such as EACCES, if a process of another user listens
        raise OSError(found, os.strerror(found))
    os.unlink(path)
