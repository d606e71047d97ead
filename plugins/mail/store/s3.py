"""An S3 bucket as a store, by the library obstore."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import IO

import obstore
from obstore import exceptions
from obstore import store as stores

from plugins.mail.store.errors import NoSuchObject, StoreAway, StoreError, StoreFull, StoreRefused
from plugins.mail.store.keys import prefix_steps, steps
from plugins.mail.store.store import StoredObject

#: The smallest part of a multipart upload that S3 accepts. A file up to this size is stored with one request.
PART_BYTES = 5 << 20
#: An object up to this size is kept in memory when it is opened.
IN_MEMORY = 1 << 20
#: The most keys of one request to delete.
DELETED_AT_ONCE = 1000
RETRIES: "stores.RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=30)}
TIMEOUTS: "stores.ClientConfig" = {"connect_timeout": "10s", "timeout": "60s"}
#: Texts in an answer that mean that there is no room. S3 itself never sends them, but compatible stores do.
SAYS_FULL = (
    "507 Insufficient",
    "XMinioStorageFull",
    "QuotaExceeded",
    "InsufficientStorage",
    "no space left",
    "disk full",
)


class S3Store:
    """Stores objects in ``bucket``, with keys below ``prefix``. An upload that a crash interrupts leaves no object."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = stores.S3Store(
            bucket,
            prefix=prefix or None,
            retry_config=RETRIES,
            # An endpoint without TLS is used only if the operator names it.
            client_options={**TIMEOUTS, "allow_http": True},
        )

    def put(self, key: str, file: IO[bytes]) -> None:
        """Upload the object, in parts if it is large."""
        steps(key)
        with _explained(key):
            obstore.put(self._bucket, key, file, chunk_size=PART_BYTES, max_concurrency=1)

    def open(self, key: str) -> IO[bytes]:
        """Return the object with this key, copied to a temporary file if it is large."""
        steps(key)
        copy = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 — the caller closes it
        try:
            with _explained(key):
                for part in obstore.get(self._bucket, key).stream(min_chunk_size=IN_MEMORY):
                    copy.write(part)
        except BaseException:
            copy.close()
            raise
        copy.seek(0)
        return copy

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, up to a thousand with each request."""
        left = iter(keys)
        while some := list(islice(left, DELETED_AT_ONCE)):
            for key in some:
                steps(key)
            with _explained(some[0]):
                obstore.delete(self._bucket, some)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects below ``prefix``."""
        prefix_steps(prefix)
        with _explained(prefix):
            for some in obstore.list(self._bucket, prefix or None):
                for found in some:
                    yield StoredObject(found["path"], found["size"], found["last_modified"])


@contextmanager
def _explained(key: str) -> Iterator[None]:
    """Raise obstore's errors as StoreErrors."""
    try:
        yield
    except FileNotFoundError as error:
        raise NoSuchObject(key) from error
    except (exceptions.BaseError, OSError) as error:
        raise _as_store_error(key, error) from error


def _as_store_error(key: str, error: Exception) -> StoreError:
    kind, told = type(error).__name__, str(error)
    if any(sign in told for sign in SAYS_FULL):
        return StoreFull(f"{key!r}: {kind}")
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return StoreRefused(f"{key!r}: {kind}")
    return StoreAway(f"{key!r}: {kind}")
