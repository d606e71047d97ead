"""A TCP proxy in front of a server, whose connections a test can close."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CHUNK = 65536


@dataclass
class Listening:
    """Accepts connections for the server at ``target``."""

    target: tuple[str, int]
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        """Accept connections until the socket is closed."""
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.begin(client)

    def begin(self, client: socket.socket) -> None:
        """Begin to serve a connection."""
        raise NotImplementedError


@dataclass
class Proxy(Listening):
    """Passes data on until it is told to close its connections."""

    sockets: list[socket.socket] = field(default_factory=list)

    def begin(self, client: socket.socket) -> None:
        """Serve a connection with a thread for each direction."""
        server = socket.create_connection(self.target)
        self.sockets += [client, server]
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self.pass_on, args=(source, sink), daemon=True).start()

    def pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        """Pass data from one socket to the other, until either is closed."""
        with suppress(OSError):
            while data := source.recv(CHUNK):
                sink.sendall(data)
        self.shut(source, sink)

    def drop(self) -> None:
        """Close every connection, and discard the data on its way."""
        dropped, self.sockets = self.sockets, []
        self.shut(*dropped)

    def shut(self, *sockets: socket.socket) -> None:
        """Close a socket in both directions, which wakes a thread that reads from it."""
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextmanager
def proxy(url: str) -> Iterator[tuple[Proxy, str]]:
    """Yield a proxy in front of the server of ``url``, and the URL that uses the proxy."""
    parts = urlsplit(url)
    user = f":{parts.password}@" if parts.password else ""
    made = Proxy((parts.hostname or "127.0.0.1", parts.port or 6379))
    threading.Thread(target=made.serve, daemon=True).start()
    try:
        yield made, parts._replace(netloc=f"{user}127.0.0.1:{made.port}").geturl()
    finally:
        made.listener.close()
        made.drop()
