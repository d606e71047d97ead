"""A TCP proxy in front of a real IMAP server, which damages the server's answers.

A fault is a function from the bytes that the server sends to the bytes that the client gets. The proxy knows only one
thing about IMAP: how an answer with a message begins.
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

#: The beginning of an answer with a message. The size of the message follows.
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
    """Send nothing of a message, and keep the connection open."""
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
    """Send BYE instead of a message."""
    if LITERAL.search(data):
        raise End(b"* BYE [UNAVAILABLE] shutting down\r\n")
    return data


def too_small(data: bytes) -> bytes:
    """Announce fewer bytes than are sent."""
    return resized(data, -7)


def too_large(data: bytes) -> bytes:
    """Announce more bytes than are sent."""
    return resized(data, 1000)


def resized(data: bytes, by: int) -> bytes:
    """Announce a wrong size of a message."""
    found = LITERAL.search(data)
    if found is None:
        return data
    return data[: found.start(1)] + str(int(found[1]) + by).encode() + data[found.end(1) :]


@dataclass
class CuttingProxy(Listening):
    """Passes data on. Data from the server passes through ``fault``."""

    fault: Fault = honest

    def begin(self, client: socket.socket) -> None:
        """Serve a connection in a thread of its own, with the current fault."""
        threading.Thread(target=self.carry, args=(client, self.fault), daemon=True).start()

    def carry(self, client: socket.socket, fault: Fault) -> None:
        """Serve one connection until either side or the fault ends it."""
        with client, socket.create_connection(self.target) as server, suppress(OSError):
            try:
                self.relay(client, server, fault)
            except End as end:
                client.sendall(end.last)
                if end.is_reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def relay(self, client: socket.socket, server: socket.socket, fault: Fault) -> None:
        """Pass on the data of both sides in one thread. If another thread read the socket, closing it would send no
        RST.
        """
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
    """Yield a proxy in front of the server at ``port``. The proxy runs in a thread."""
    made = CuttingProxy(("127.0.0.1", port))
    threading.Thread(target=made.serve, daemon=True).start()
    try:
        yield made
    finally:
        made.listener.shutdown(socket.SHUT_RDWR)
        made.listener.close()
