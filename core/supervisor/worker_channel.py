"""The channel between a supervisor and its worker processes. They send each other single words over a local socket.

A worker that must be replaced says ``retire``. The supervisor starts a replacement, which says ``ready`` once it is
working. Only then does the supervisor tell the old worker to ``go``: the old worker takes no more messages, finishes
the runs that it has started, and says ``done``. So the number of workers never falls below the configured number.
"""

import os
import shutil
import socket
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from core import forks

#: The environment variable with the address of a worker's supervisor. It is internal, and not a setting.
ADDRESS = "_ROTA_SUPERVISOR"
#: The environment variable with the worker's name on the channel. It is internal as well.
ALIAS = "_ROTA_ALIAS"

RETIRE, READY, GO, DONE = "retire", "ready", "go", "done"
#: The word that a worker says every second.
ALIVE = "alive"

LONGEST_WORD = 1024


class WorkerChannel:
    """The worker's end of a channel."""

    def __init__(self, address: str, alias: str) -> None:
        """Connect to the supervisor. Raises OSError if the supervisor is gone."""
        self._alias = alias
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        forks.keep_from_children(self._socket)

    def say(self, word: str) -> None:
        """Say ``word``. Raises OSError if the supervisor is gone."""
        self._socket.sendall(f"{self._alias} {word}\n".encode())

    def show_life(self) -> None:
        """Say ``alive``, without waiting for a supervisor that does not read."""
        with suppress(OSError):
            self._socket.send(f"{self._alias} {ALIVE}\n".encode(), socket.MSG_DONTWAIT)

    def hears(self, word: str, *, within_seconds: float) -> bool:
        """Return whether the supervisor says ``word`` in time. Raises OSError if the supervisor is gone."""
        self._socket.settimeout(within_seconds)
        try:
            heard = self._socket.recv(LONGEST_WORD)
        except TimeoutError:
            return False
        if not heard:
            raise ConnectionResetError("the supervisor has closed the channel")
        return word in heard.decode().split()


@cache
def to_supervisor() -> WorkerChannel | None:
    """Return this process's channel, if a Rota supervisor has started this process and is still running."""
    with suppress(KeyError, OSError):
        return WorkerChannel(os.environ[ADDRESS], os.environ[ALIAS])
    return None


class ChannelServer:
    """The supervisor's end of all its channels."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rota-channel-"))  # only this user can enter it
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / "socket"))
        self._listener.listen()
        self._listener.setblocking(False)
        #: For each connection, the incomplete word that it has sent so far.
        self._connections: dict[socket.socket, bytes] = {}
        self._by_alias: dict[str, socket.socket] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.sockets:
            each.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def sockets(self) -> list[socket.socket]:
        """The sockets that become readable when a worker says something."""
        return [self._listener, *self._connections]

    def environ(self, alias: str) -> dict[str, str]:
        """Return the environment variables by which a worker finds this server."""
        return {ADDRESS: str(self._folder / "socket"), ALIAS: alias}

    def hear(self) -> list[tuple[str, str]]:
        """Return the words said since the last call, each with the name of the worker that said it, without waiting."""
        with suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._connections[connection] = b""
        return [heard for connection in list(self._connections) for heard in self._hear_one(connection)]

    def say(self, alias: str, word: str) -> None:
        """Say ``word`` to one worker. Do nothing if the worker has ended."""
        with suppress(KeyError, OSError):
            self._by_alias[alias].sendall(f"{word}\n".encode())

    def _hear_one(self, connection: socket.socket) -> list[tuple[str, str]]:
        try:
            said = connection.recv(LONGEST_WORD)
        except BlockingIOError:
            return []
        except OSError:
            said = b""
        if not said:
            self._close(connection)
            return []
        *lines, self._connections[connection] = (self._connections[connection] + said).split(b"\n")
        heard = [(alias, word) for alias, _, word in (line.decode().partition(" ") for line in lines)]
        self._by_alias.update({alias: connection for alias, _ in heard})
        return heard

    def _close(self, connection: socket.socket) -> None:
        connection.close()
        del self._connections[connection]
        self._by_alias = {alias: other for alias, other in self._by_alias.items() if other is not connection}
