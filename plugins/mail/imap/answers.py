"""Interprets errors of IMAPClient and of the network: refused credentials, a busy server, or a lost connection.

IMAPClient raises the same error for a wrong password and for too many connections. The response codes of RFC 5530
distinguish them. If a server sends no code, the words of its answer do.
"""

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from imapclient.exceptions import IMAPClientAbortError, IMAPClientError

from plugins.mail.errors import AnswerUnreadable, ConnectFailed, ConnectionCut, LoginRefused, PollFailed, ServerBusy
from plugins.mail.imap.mailbox import Credentials, Mailbox

#: The response codes (RFC 5530) of a server that can answer later.
BUSY_CODES = {"UNAVAILABLE", "LIMIT", "INUSE", "OVERQUOTA"}
REFUSED_CODES = {"AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "EXPIRED"}
CODE = re.compile(r"\[([A-Z0-9-]+)[^\]]*\]")
#: Words in the answers of servers that send no code, or only ALERT.
BUSY_WORDS = re.compile(
    r"too many|simultaneous|try again|try later|temporar|unavailable|overload|throttl|rate limit|quota|shutting down",
    re.IGNORECASE,
)
#: imaplib puts the bytes of an answer into its errors as Python writes them.
BYTES = re.compile(r"""\bb(["'])(.*)\1""")
#: imaplib's errors for data that is not an answer. If a server reports a wrong size of a message, the rest of the
#: message is such data.
UNREADABLE = re.compile(r"unexpected (tagged )?response|got more than \d+ bytes")
#: An answer is cut after this many characters in an error.
LONGEST_ANSWER = 200
#: The texts of OpenSSL for a peer that does not speak TLS.
NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "HTTP_REQUEST"}


def said(text: object, mailbox: Mailbox, credentials: Credentials | None = None) -> str:
    """Return an answer of a server in one printable line, without the user's name and credentials."""
    line = BYTES.sub(r"\2", text.decode(errors="replace") if isinstance(text, bytes) else str(text))
    hidden = [mailbox.username, *((credentials.password, credentials.access_token) if credentials else ())]
    for each in filter(None, hidden):
        line = line.replace(each, "…")
    printable = "".join(letter if letter.isprintable() else " " for letter in line)
    return " ".join(printable.split())[:LONGEST_ANSWER]


def code_of(text: str) -> str:
    """Return the response code in an answer, or an empty text if it has none."""
    found = CODE.search(text)
    return found[1] if found else ""


def is_busy(text: str) -> bool:
    """Return whether an answer means that the server may answer differently later."""
    code = code_of(text)
    return code in BUSY_CODES or (code not in REFUSED_CODES and BUSY_WORDS.search(text) is not None)


@contextmanager
def explained(mailbox: Mailbox) -> Iterator[None]:
    """Replace the errors of a connection that is logged in by this plugin's errors."""
    try:
        yield
    except IMAPClientAbortError as error:
        raise _cut(mailbox, error) from None
    except IMAPClientError as error:
        answer = said(error, mailbox)
        kind = ServerBusy if is_busy(answer) else PollFailed
        raise kind(f"{mailbox} has refused a command: {answer}") from None
    except OSError as error:
        raise _cut(mailbox, error) from None


@contextmanager
def explained_connecting(mailbox: Mailbox, seconds: float) -> Iterator[None]:
    """Replace the errors of connecting and of TLS by this plugin's errors."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise ConnectFailed(
            f"the certificate of {mailbox} is not valid: {said(error.verify_message, mailbox)}; give the host's own"
            " name, or the file of its certificate authority as ca_file"
        ) from None
    except ssl.SSLError as error:
        raise _no_tls(mailbox, error) from None
    except socket.gaierror as error:
        raise ConnectFailed(f"the host {mailbox.host!r} cannot be found: {error.strerror}; check its name") from None
    except TimeoutError:
        hint = (
            ""
            if mailbox.tls == "implicit"
            else "; if the port speaks TLS from the start, the account needs tls='implicit'"
        )
        raise ConnectFailed(f"{mailbox} has not answered within {seconds:g} s{hint}") from None
    except IMAPClientError as error:
        raise _bad_greeting(mailbox, error) from None
    except OSError as error:
        raise ConnectFailed(f"{mailbox} cannot be reached: {error.strerror or type(error).__name__}") from None


@contextmanager
def explained_login(mailbox: Mailbox, credentials: Credentials) -> Iterator[None]:
    """Replace the errors of a log-in by this plugin's errors."""
    try:
        yield
    except IMAPClientAbortError as error:
        raise _cut(mailbox, error) from None
    except IMAPClientError as error:
        answer = said(error, mailbox, credentials)
        if is_busy(answer):
            raise ServerBusy(f"{mailbox} is busy: {answer}") from None
        if code_of(answer) == "PRIVACYREQUIRED":
            raise ConnectFailed(f"{mailbox} takes no log-in without TLS: {answer}; change the account's tls") from None
        raise LoginRefused(f"{mailbox} has refused the log-in: {answer}") from None
    except OSError as error:
        raise _cut(mailbox, error) from None


def _cut(mailbox: Mailbox, error: Exception) -> PollFailed:
    """Return the error for a connection that has ended.

    A BYE means that the server is busy; any other end means a cut, or an answer that cannot be read.
    """
    if isinstance(error, TimeoutError):
        return ConnectionCut(f"{mailbox} has sent nothing for too long (ROTA_MAIL_READ_SECONDS)")
    answer = said(error, mailbox)
    if UNREADABLE.search(answer):
        # Without the answer, which may be a part of a message.
        return AnswerUnreadable(f"{mailbox} has sent an answer that cannot be read")
    if isinstance(error, IMAPClientAbortError) and "socket error" not in answer and "EOF" not in answer:
        return ServerBusy(f"{mailbox} has ended the connection: {answer}")
    return ConnectionCut(f"the connection to {mailbox} was lost: {answer}")


def _no_tls(mailbox: Mailbox, error: ssl.SSLError) -> ConnectFailed:
    if error.reason in NO_TLS:
        return ConnectFailed(
            f"{mailbox} does not speak TLS from the start: the port and tls={mailbox.tls!r} do not fit; use another"
            " port, or tls='starttls'"
        )
    return ConnectFailed(f"no TLS connection to {mailbox} is possible: {said(error.reason or error, mailbox)}")


def _bad_greeting(mailbox: Mailbox, error: IMAPClientError) -> PollFailed:
    answer = said(error.args[0] if error.args else error, mailbox)
    if "BYE" in answer or is_busy(answer):
        return ServerBusy(f"{mailbox} has refused the connection: {answer}")
    if isinstance(error, IMAPClientAbortError) and "unexpected response" not in answer:
        return ConnectFailed(
            f"{mailbox} has closed the connection before its greeting: the port and the account's tls may not fit"
        )
    return ConnectFailed(f"{mailbox} does not speak IMAP: {answer}")
