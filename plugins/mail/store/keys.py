"""Keys of stored messages. They consist of numbers, so that no header of a message can choose where it is stored."""

import re

from plugins.mail.store.errors import StoreError

#: A key, or a prefix without its last slash. A name begins with a dot only while the object is being written.
KEY = re.compile(r"(\.?[0-9a-z][0-9a-z._-]{0,200})(/\.?[0-9a-z][0-9a-z._-]{0,200}){0,15}")
UIDS_PER_FOLDER = 1000


def message_key(account_id: int, folder_number: int, generation: int, uid: int) -> str:
    """Return the key of a message. It depends only on the message's identity.

    So if a message is stored again after a crash, it replaces the first object. ``folder_number`` and ``generation``
    come from the row of the folder. They are needed because two folders of an account may have the same UIDVALIDITY,
    and a server may return to a former UIDVALIDITY.
    """
    return f"{account_id}/{folder_number}.{generation}/{uid // UIDS_PER_FOLDER}/{uid}.eml"


def account_prefix(account_id: int) -> str:
    """Return the prefix of the keys of an account's messages. No other key has this prefix."""
    return f"{account_id}/"


def steps(key: str) -> list[str]:
    """Return the names between the slashes of ``key``. Raises StoreError if it is not a key."""
    if not KEY.fullmatch(key):
        raise StoreError(f"{key!r} is not a key: names of digits, lower-case letters, '.', '_' and '-' between slashes")
    return key.split("/")


def prefix_steps(prefix: str) -> list[str]:
    """Return the names between the slashes of ``prefix``.

    Raises StoreError unless the prefix is empty or a key with a slash at its end.
    """
    if not prefix:
        return []
    if not prefix.endswith("/"):
        raise StoreError(f"the prefix {prefix!r} must end with a slash; without it, it would match other folders")
    return steps(prefix[:-1])
