"""A TCP proxy before a real IMAP server, which spoils its answers.

A fault is a function of what the server sends that returns what the client gets. The proxy knows nothing of IMAP but
the beginning of an answer with a message.
"""

import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.support.proxy import Listening

#: The beginning of an answer with a message: its size follows.
LITERAL = re.compile(rb"\* \d+ FETCH \([^\r\n]*BODY\[\][^\r\n]*\{(\d+)\}\r\n")
CHUNK = 65536
#: The value of SO_LINGER with which closing a socket discards unsent data and sends RST: on, for 0 seconds.
RESET = struct.pack("ii", 1, 0)


class End(Exception):
    """Raised by a fault to end the connection after ``last``, by RST if ``is_reset``."""

    def __init__(self, last: bytes = b"", *, is_reset: bool = False) -> None:
        super().__init__()
        self.last, self.is_reset = last, is_reset


#: Changes some bytes of a server before they are sent on. Raises End.
Fault = Callable[[bytes], bytes]


def honest(data: bytes) -> bytes:
    """Change nothing."""
    return data


def slow(data: bytes) -> bytes:
    """Send each answer late."""
    time.sleep(0.1)
    return data


def silent(data: bytes) -> bytes:
    """Send nothing of a message, and keep the connection."""
    return b"" if LITERAL.search(data) else data


def reset_in_literal(data: bytes) -> bytes:
    """Reset the connection in the middle of a message."""
    found = LITERAL.search(data)
    if found:
        raise End(data[: found.end() + int(found[1]) // 2], is_reset=True)
    return data


def half_sent(data: bytes) -> bytes:
    """End the connection in the middle of a line."""
    found = LITERAL.search(data)
    if found:
        raise End(data[: found.start() + 9])
    return data


def bye(data: bytes) -> bytes:
    """Take leave instead of sending a message."""
    if LITERAL.search(data):
        raise End(b"* BYE [UNAVAILABLE] shutting down\r\n")
    return data


def too_small(data: bytes) -> bytes:
    """Announce fewer bytes than follow."""
    return resized(data, -7)


def too_large(data: bytes) -> bytes:
    """Announce more bytes than follow."""
    return resized(data, 1000)


def resized(data: bytes, by: int) -> bytes:
    """Announce another size of a message."""
    found = LITERAL.search(data)
    if found is None:
        return data
    return data[: found.start(1)] + str(int(found[1]) + by).encode() + data[found.end(1) :]


@dataclass
class CuttingProxy(Listening):
    """Passes on what comes; what the server sends, through ``fault``."""

    fault: Fault = honest

    def begin(self, client: socket.socket) -> None:
        """Carry a connection in a thread of its own, with the fault of this moment."""
        threading.Thread(target=self.carry, args=(client, self.fault), daemon=True).start()

    def carry(self, client: socket.socket, fault: Fault) -> None:
        """Carry one connection, until either side or the fault ends it."""
        with client, socket.create_connection(self.target) as server, suppress(OSError):
            try:
                self.relay(client, server, fault)
            except End as end:
                client.sendall(end.last)
                if end.is_reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def relay(self, client: socket.socket, server: socket.socket, fault: Fault) -> None:
        """Pass on what both sides send. One thread does both: a socket that another thread reads sends no RST."""
        while True:
            for source in select.select([client, server], [], [])[0]:
                data = source.recv(CHUNK)
                if not data:
                    return
                if source is client:
                    server.sendall(data)
                else:
                    client.sendall(fault(data))


@contextmanager
def cutting(port: int) -> Iterator[CuttingProxy]:
    """A proxy before the server at ``port``, which runs in a thread."""
    made = CuttingProxy(("127.0.0.1", port))
    threading.Thread(target=made.serve, daemon=True).start()
    try:
        yield made
    finally:
        made.listener.shutdown(socket.SHUT_RDWR)
        made.listener.close()
