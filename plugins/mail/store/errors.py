"""The errors of the store of raw messages.

StoreError                  a MailError
├── StoreAddressError       ROTA_MAIL_STORE is missing or wrong
├── NoSuchObject            the store has no object of that key
├── StoreFull               the store has no room; nothing was stored
├── StoreRefused            the store is read-only, or refuses this user or these credentials
└── StoreAway               the store does not answer, or answers with a fault of its own
"""

from plugins.mail.errors import MailError

VARIABLE = "ROTA_MAIL_STORE"


class StoreError(MailError):
    """The base class of the store's errors. Their messages name the store and the key, never an object's content."""


class StoreAddressError(StoreError):
    """ROTA_MAIL_STORE is not set, is malformed, or names a place that cannot be a store."""

    def __init__(self, problem: str) -> None:
        self.problem = f"{problem}; expected file:///srv/mail or s3://bucket/prefix"
        super().__init__(f"{VARIABLE} {self.problem}")


class NoSuchObject(StoreError):
    """The store has no object with this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the store of {VARIABLE} has no object {key!r}")


class StoreFull(StoreError):
    """There is no room, or a quota is used up. Objects that were stored before are unchanged."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the store of {VARIABLE} is full ({problem}); make room, and the next run goes on")


class StoreRefused(StoreError):
    """The store is read-only, or refuses this user. Objects that were stored before are unchanged."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the store of {VARIABLE} refuses ({problem}); give this service the right to write there")


class StoreAway(StoreError):
    """The store does not answer, or answers with an error of its own. It may work again later."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the store of {VARIABLE} cannot be used at present ({problem})")
