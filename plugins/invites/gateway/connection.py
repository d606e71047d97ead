"""One exchange with the gateway over HTTP: a request is sent, and its whole answer is read within bounds.

Each phase has its time-out: to connect, to send, to wait for the next bytes, and for the whole answer. The errors tell
whether the gateway may have worked on the request, and nothing else of the exchange.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from plugins.invites.gateway import troubles
from plugins.invites.gateway.address import Address

#: An answer is not longer than this, in bytes. A page of 500 members has about 50,000.
LONGEST_ANSWER = 1024 * 1024
#: One process has at most this many connections. A job's limit is lower.
MOST_CONNECTIONS = 100

# The lines of these loggers have the addresses of persons in URLs, and all headers.
for library in ("httpx2", "httpcore2"):
    logging.getLogger(library).setLevel(logging.WARNING)


class NotReached(Exception):
    """The request was not sent, or only a part of it."""


class Cut(Exception):
    """The request was sent, and no whole answer has come."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. ``body`` is an empty mapping unless the answer is a JSON object."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]


class Connection:
    """The connections of one process to the gateway. Threads may share it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "rota-invites"}
        if address.token is not None:
            headers["Authorization"] = f"Bearer {address.token}"
        self.client = httpx2.Client(
            headers=headers,
            verify=address.tls(),
            timeout=httpx2.Timeout(address.read_seconds, connect=address.connect_seconds, pool=address.connect_seconds),
            limits=httpx2.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=MOST_CONNECTIONS),
        )

    def exchange(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and return its answer, whatever its status is. Raises NotReached and Cut."""
        deadline = time.monotonic() + self.address.total_seconds
        url = self.address.url.rstrip("/") + path
        with (
            explained(self.address),
            self.client.stream(method, url, json=body, headers=headers) as response,
        ):
            content = self._read(response, deadline)
        return Answer(response.status_code, response.headers, parsed(content))

    def _read(self, response: httpx2.Response, deadline: float) -> bytes:
        """Return the body as it was sent, within the bounds."""
        content = bytearray()
        for part in response.iter_raw():
            content += part
            if len(content) > LONGEST_ANSWER:
                raise Cut(f"{self.address} has sent an answer of more than {LONGEST_ANSWER} bytes")
            if time.monotonic() > deadline:
                raise Cut(f"{self.address} has not ended its answer within {self.address.total_seconds:g} s")
        return bytes(content)


@contextmanager
def explained(address: Address) -> Iterator[None]:
    """Replace the errors of httpx2, which have the whole request, by sentences."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError) as error:
        raise NotReached(troubles.not_reached(address, error)) from None
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        raise Cut(troubles.cut(address, error)) from None
    except httpx2.InvalidURL:
        raise NotReached(f"{address} cannot be asked about a name that no URL can have") from None


def parsed(content: bytes) -> Mapping[str, Any]:
    """Return the JSON object in ``content``, or an empty mapping."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
