"""What every store of raw messages can do."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a listing."""

    key: str
    #: In bytes.
    size: int
    #: In UTC, by the store's clock.
    written_at: datetime


class Store(Protocol):
    """Keeps raw messages as objects with keys. Every method raises StoreError; an instance serves many threads."""

    def put(self, key: str, file: IO[bytes]) -> None:
        """Store ``file`` from its present position to its end, in place of an object of the same key.

        An object is there whole or not at all, and is on the disk when this returns. Raises StoreFull and
        StoreRefused; then an older object of the key is unchanged.
        """

    def open(self, key: str) -> IO[bytes]:
        """Return the object, to be read from its start; the caller closes it. Raises NoSuchObject."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects of these keys; a missing one is no error. If this raises, some may be deleted."""

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose keys begin with ``prefix``, which is empty or ends with a slash; in no particular
        order.

        Objects that are put or deleted meanwhile may be listed or not. What a crash of ``put`` left is listed too.
        """
