"""Encrypts tokens with ROTA_MAIL_KEY. To change the key, give several keys, separated by commas: the first key
encrypts, and all keys decrypt.

``python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"`` makes a key.
"""

from typing import TYPE_CHECKING

from plugins.mail.errors import BadKey
from plugins.mail.settings import MailSettings

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

ADVICE = "`rota mail key` prints a new one"


def encrypt(text: str) -> bytes:
    """Return ``text``, encrypted and signed. Raises BadKey."""
    from cryptography.fernet import MultiFernet

    return MultiFernet(_keys()).encrypt(text.encode())


def decrypt(token: bytes) -> str:
    """Return the text that was encrypted. Raises BadKey if none of the keys fits."""
    from cryptography.fernet import InvalidToken, MultiFernet

    try:
        return MultiFernet(_keys()).decrypt(token).decode()
    except InvalidToken:
        raise BadKey("ROTA_MAIL_KEY has no key that fits a stored token; add the former key after a comma") from None


def new_key() -> str:
    """Return a key for ROTA_MAIL_KEY."""
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


def _keys() -> "list[Fernet]":
    from cryptography.fernet import Fernet

    given = MailSettings.current().key
    if given is None:
        raise BadKey(f"ROTA_MAIL_KEY is not set, and OAuth2 tokens are stored encrypted; {ADVICE}")
    try:
        return [Fernet(key.strip().encode()) for key in given.get_secret_value().split(",")]
    except ValueError:
        raise BadKey(f"ROTA_MAIL_KEY has a part that is no key: 32 bytes in URL-safe base64; {ADVICE}") from None
