"""Reads the headers in which a trusted proxy describes a request. The same headers of all other clients are ignored.

The headers are ``X-Forwarded-For``, ``-Proto``, ``-Host`` and ``-Prefix``, and those that name the user and the groups.
``Forwarded`` (RFC 7239) is not read.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from core.settings import UNIX, WEB_PREFIX, Settings, proxies, split_networks

Address = IPv4Address | IPv6Address
Headers = list[tuple[bytes, bytes]]

HOST = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
FORWARDED = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix")
#: An address of a client with the port that some proxies add.
WITH_PORT = re.compile(r"\[(?P<v6>[^\]]+)\](:\d{1,5})?|(?P<v4>[0-9.]+):\d{1,5}")


@dataclass(frozen=True, slots=True)
class User:
    """The user whom a trusted proxy has named, and the user's groups."""

    name: str
    groups: frozenset[str]


class Proxies:
    """The outermost layer of the application, which knows the trusted proxies."""

    def __init__(self, app: ASGIApp, configured: Settings) -> None:
        self._app = app
        self._trusted = split_networks(configured.web_proxies)
        self._trusts_socket = UNIX in proxies(configured.web_proxies)
        self._has_prefix = bool(configured.web_prefix)
        self._user, self._groups = configured.web_user_header.lower(), configured.web_groups_header.lower()
        self._removed = {name.encode() for name in (*FORWARDED, self._user, self._groups) if name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on as the client sent it to the proxy."""
        await self._app(self._seen(scope) if scope["type"] == "http" else scope, receive, send)

    def _seen(self, scope: Scope) -> Scope:
        peer = address(scope["client"][0]) if scope.get("client") else None
        is_trusted = self._is_trusted(peer) if scope.get("client") else self._trusts_socket
        kept = [pair for pair in scope["headers"] if pair[0] not in self._removed]
        if not is_trusted:
            return {**scope, "headers": kept}
        given: Headers = [pair for pair in scope["headers"] if pair[0] in self._removed]
        client = self._client(peer, given)
        return {
            **scope,
            "headers": with_host(kept, last(given, "x-forwarded-host")),
            "scheme": scheme(last(given, "x-forwarded-proto"), scope["scheme"]),
            "client": (str(client), 0) if client else None,
            "state": {**scope.get("state", {}), **self._prefix(given), "user": self._named(given)},
        }

    def _is_trusted(self, found: Address | None) -> bool:
        return found is not None and any(found in network for network in self._trusted)

    def _client(self, peer: Address | None, given: Headers) -> Address | None:
        """Return the nearest address that is not one of a trusted proxy. Addresses that are farther away can be
        forged.

        A program that connects to the Unix socket has no address.
        """
        found = peer
        for text in reversed(elements(given, "x-forwarded-for")):
            farther = address(text)
            if farther is None:
                break
            found = farther
            if not self._is_trusted(found):
                break
        return found

    def _prefix(self, given: Headers) -> dict[str, str]:
        """Return the prefix that the proxy has removed, unless ROTA_WEB_PREFIX names a prefix."""
        prefix = last(given, "x-forwarded-prefix").rstrip("/")
        return {"prefix": prefix} if WEB_PREFIX.fullmatch(prefix) and not self._has_prefix else {}

    def _named(self, given: Headers) -> User | None:
        """Return the user whom the proxy names, or None. If the header of the user or of the groups occurs twice, one
        of the two may be forged, so it is None.
        """
        names, groups = values(given, self._user), values(given, self._groups)
        if len(names) != 1 or len(groups) > 1 or not (name := names[0].strip()):
            return None
        return User(name, frozenset(elements(given, self._groups)))


def elements(given: Headers, header: str) -> list[str]:
    """Return the elements of a header that is a list, from all its occurrences."""
    return [part.strip() for text in values(given, header) for part in text.split(",") if part.strip()]


def values(given: Headers, header: str) -> list[str]:
    """Return the value of each occurrence of ``header``. An empty ``header`` has no occurrence."""
    return [text_of(value) for name, value in given if header and name.decode() == header]


def last(given: Headers, header: str) -> str:
    """Return the last element of a header, or an empty text. The nearest proxy has added the last element."""
    return (elements(given, header) or [""])[-1]


def text_of(value: bytes) -> str:
    """Return a value of a header, which proxies write in UTF-8."""
    return value.decode("utf-8", errors="replace")


def scheme(said: str, own: str) -> str:
    """Return the scheme ``said`` if it is HTTP or HTTPS, and ``own`` otherwise."""
    return said.lower() if said.lower() in {"http", "https"} else own


def with_host(headers: Headers, host: str) -> Headers:
    """Return ``headers`` with ``host`` as the host, or unchanged if ``host`` is not valid."""
    if not HOST.fullmatch(host):
        return headers
    return [*(pair for pair in headers if pair[0] != b"host"), (b"host", host.encode())]


def address(text: str) -> Address | None:
    """Return the IP address in ``text``, which may have a port, or None. For an IPv4-mapped IPv6 address, return the
    IPv4 address.
    """
    ported = WITH_PORT.fullmatch(text)
    try:
        found = ip_address((ported["v6"] or ported["v4"]) if ported else text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
