"""The interface of every store of raw messages."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a listing."""

    key: str
    #: The size of the object in bytes.
    size: int
    #: The time of the last change in UTC, by the store's clock.
    written_at: datetime


class Store(Protocol):
    """Keeps raw messages as objects with keys. Every method raises StoreError. Many threads may use one instance."""

    def put(self, key: str, file: IO[bytes]) -> None:
        """Store ``file`` from its present position to its end. An object with the same key is replaced.

        An object is complete or does not exist, and is on the disk when this returns. Raises StoreFull and
        StoreRefused. In these cases, an older object with the key is unchanged.
        """

    def open(self, key: str) -> IO[bytes]:
        """Return the object, to be read from its start. The caller closes it. Raises NoSuchObject."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects with these keys. A missing object is not an error. If this raises, some may be deleted."""

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose keys begin with ``prefix``, which is empty or ends with a slash, in no particular
        order.

        Objects that are put or deleted meanwhile may be listed or not. Files that a crash of ``put`` left are listed
        too.
        """
