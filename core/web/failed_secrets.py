"""Limits how many wrong secrets each client address may send: tokens, links and sessions.

A secret that this process has accepted before is still checked. So a caller with a right token is not locked out by
another program at the same address, for example behind a proxy that is not in ``ROTA_WEB_PROXIES``.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network

from core.errors import NotAuthenticated
from core.web import proxies
from core.web.buckets import Buckets
from core.web.refusals import TooManyFailures

PER_MINUTE = 10
#: Providers give a customer at least this many bits of IPv6 addresses.
IPV6_BITS = 64
#: At most this many secrets are remembered, by their hashes.
MOST_SECRETS = 10_000


class FailedSecrets:
    """Counts wrong secrets by client address."""

    def __init__(self, per_minute: int = PER_MINUTE, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._left = Buckets(per_minute, monotonic)
        self._accepted, self._ended = Remembered(), Remembered()

    @contextmanager
    def counted(self, address: str | None, secret: str, *, is_session: bool = False) -> Iterator[None]:
        """Count a NotAuthenticated of the block, which checks ``secret``. Raises TooManyFailures before the block.

        Browsers send a session that has ended again and again, so it counts once.
        """
        place, mark = place_of(address), hashlib.sha256(secret.encode(errors="replace")).digest()
        if mark not in self._accepted and (seconds := self._left.wait(place)):
            raise TooManyFailures(self._left.per_minute, seconds)
        try:
            yield
        except NotAuthenticated:
            self._accepted.discard(mark)
            is_counted = is_session and self._ended.add(place.encode() + mark)
            if not is_counted:
                self._left.take(place)
            raise
        self._accepted.add(mark)


class Remembered:
    """The hashes that were added last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, mark: bytes) -> bool:
        return mark in self._hashes

    def add(self, mark: bytes) -> bool:
        """Add a hash. Return whether it was there before."""
        with self._lock:
            was_there = mark in self._hashes
            self._hashes[mark] = None
            self._hashes.move_to_end(mark)
            if len(self._hashes) > MOST_SECRETS:
                self._hashes.popitem(last=False)
        return was_there

    def discard(self, mark: bytes) -> None:
        """Remove a hash, if it is there."""
        with self._lock:
            self._hashes.pop(mark, None)


def place_of(address: str | None) -> str:
    """Return the name under which an address is counted: itself, or the network of one customer of IPv6."""
    found = proxies.address(address or "")
    if found is None or found.version == 4:
        return str(found or address or "")
    return str(ip_network((found, IPV6_BITS), strict=False))
