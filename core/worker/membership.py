"""This process's registration in the ledger: its id, its names and its leases."""

import os
import secrets
import socket
from typing import Protocol

from core.ledger.leases import Lease


def process_name() -> str:
    """Return the name of this process for people: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def application_name() -> str:
    """Return a name for this process's connections, at most 63 bytes. Unlike a pid, it is never used twice."""
    return f"rota:{os.getpid()}:{secrets.token_hex(8)}"


class LeasesInHand:
    """The leases that this process knows it has, by their tokens. Adding and removing need no lock."""

    def __init__(self) -> None:
        self._tokens: set[int] = set()
        #: The tokens of attempts that have not ended although their runs were cancelled, as the last heartbeat found
        #: them.
        self.cancelled: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, *leases: Lease) -> None:
        """Add leases that were claimed."""
        self._tokens.update(lease.token for lease in leases)

    def remove(self, *leases: Lease) -> None:
        """Remove leases whose runs have ended or were released."""
        self._tokens.difference_update(lease.token for lease in leases)

    @property
    def tokens(self) -> set[int]:
        """The tokens of the present leases."""
        return self._tokens.copy()


class Membership(Protocol):
    """The identity under which a process claims runs. In a worker this is its heartbeat."""

    @property
    def process_id(self) -> int | None:
        """The id of the process in the ledger, or None while it is not registered and must not claim."""

    @property
    def in_hand(self) -> LeasesInHand:
        """The leases that the process knows it has."""
