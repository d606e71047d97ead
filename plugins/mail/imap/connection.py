"""A connection to a server. It is encrypted as the account says, logged in, and always closed.

Certificates are always verified. Rota never falls back to no encryption: if the server does not offer STARTTLS, no
password is sent.
"""

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

from imapclient import IMAPClient, SocketTimeout
from imapclient.exceptions import IMAPClientError

from plugins.mail.errors import ConnectFailed
from plugins.mail.imap.answers import explained_connecting, explained_login
from plugins.mail.imap.mailbox import Credentials, Mailbox
from plugins.mail.models import Tls
from plugins.mail.settings import MailSettings

# The lines of this logger contain all that is sent and received, including passwords and mail.
logging.getLogger("imapclient").setLevel(logging.WARNING)


@contextmanager
def connected(mailbox: Mailbox, credentials: Credentials) -> Iterator[IMAPClient]:
    """Yield a client that is logged in. Raises ConnectFailed, LoginRefused, ServerBusy or ConnectionCut."""
    client = _opened(mailbox)
    try:
        _log_in(client, mailbox, credentials)
        yield client
    except BaseException:
        _close(client)
        raise
    try:
        client.logout()
    except (IMAPClientError, OSError):
        _close(client)


def _opened(mailbox: Mailbox) -> IMAPClient:
    """Return a client that is connected, and encrypted if the account says so."""
    settings = MailSettings.current()
    timeout = SocketTimeout(settings.connect_seconds, settings.read_seconds)
    context = _context(mailbox) if mailbox.tls != Tls.NONE else None
    is_implicit = mailbox.tls == Tls.IMPLICIT
    with explained_connecting(mailbox, settings.connect_seconds):
        client = IMAPClient(
            mailbox.host, mailbox.port, ssl=is_implicit, ssl_context=context if is_implicit else None, timeout=timeout
        )
        client.normalise_times = False  # times keep their zones
        if context is not None and not is_implicit:
            try:
                _start_tls(client, mailbox, context)
            except BaseException:
                _close(client)
                raise
    return client


def _start_tls(client: IMAPClient, mailbox: Mailbox, context: ssl.SSLContext) -> None:
    if not client.has_capability("STARTTLS"):
        raise ConnectFailed(
            f"{mailbox} offers no STARTTLS, so no password was sent; use tls='implicit' or another port"
        )
    client.starttls(context)


def _context(mailbox: Mailbox) -> ssl.SSLContext:
    if mailbox.ca_file is None:
        return _usual_context()
    try:
        return ssl.create_default_context(cafile=mailbox.ca_file)
    except OSError as error:
        why = error.strerror or "it has no certificate"
        raise ConnectFailed(
            f"the file of the certificate authority, {mailbox.ca_file!r}, cannot be read: {why}"
        ) from None


@cache
def _usual_context() -> ssl.SSLContext:
    """Return the certificate authorities of this machine.

    The authorities are read once, since reading them takes longer than a poll.
    """
    return ssl.create_default_context()


def _log_in(client: IMAPClient, mailbox: Mailbox, credentials: Credentials) -> None:
    with explained_login(mailbox, credentials):
        if credentials.access_token:
            client.oauth2_login(mailbox.username, credentials.access_token)
        elif (mailbox.username + credentials.password).isascii():
            client.login(mailbox.username, credentials.password)
        else:  # LOGIN has no encoding for other letters, PLAIN has UTF-8 (RFC 4616)
            client.plain_login(mailbox.username, credentials.password)


def _close(client: IMAPClient) -> None:
    with suppress(OSError, IMAPClientError):
        client.shutdown()
