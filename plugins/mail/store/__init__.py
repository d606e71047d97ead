"""The store of raw messages: an S3 bucket or a local folder, according to ROTA_MAIL_STORE."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from plugins.mail.store.errors import (
    NoSuchObject,
    StoreAddressError,
    StoreAway,
    StoreError,
    StoreFull,
    StoreRefused,
)
from plugins.mail.store.keys import account_prefix, message_key
from plugins.mail.store.local import LocalStore
from plugins.mail.store.store import Store, StoredObject

__all__ = [
    "LocalStore",
    "NoSuchObject",
    "Store",
    "StoreAddressError",
    "StoreAway",
    "StoreError",
    "StoreFull",
    "StoreRefused",
    "StoredObject",
    "account_prefix",
    "check_address",
    "message_key",
    "open_store",
]


@lru_cache(maxsize=8)
def open_store(address: str | None) -> Store:
    """Return the store at ``address``, ``file:///srv/mail`` or ``s3://bucket/prefix``.

    The same address returns the same object.

    The credentials, the region and the endpoint of S3 come from the variables AWS_ACCESS_KEY_ID and so on. The store is
    opened when an object is first used. Raises StoreAddressError.
    """
    if not address:
        raise StoreAddressError("is not set")
    check_address(address)
    parts = urlsplit(address)
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)))
    if find_spec("obstore") is None:
        raise StoreAddressError(f"is {address!r}, for which `pip install 'rota[mail]'` is needed")
    from plugins.mail.store.s3 import S3Store

    return S3Store(parts.netloc, unquote(parts.path).strip("/"))


def check_address(address: str) -> None:
    """Raise StoreAddressError unless ``address`` is well-formed. Nothing is opened."""
    parts = urlsplit(address)
    if parts.username is not None or parts.query or parts.fragment:
        raise StoreAddressError("must have no user, password or query; set credentials by AWS_ACCESS_KEY_ID and so on")
    if parts.scheme == "s3":
        if not parts.netloc:
            raise StoreAddressError(f"is {address!r}, which names no bucket")
        return
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc:
        raise StoreAddressError(f"is {address!r}")
    if "\0" in path or ".." in path.split("/") or path.strip("/") == "":
        raise StoreAddressError(f"is {address!r}, and must name an absolute path without .. that is not the root")
