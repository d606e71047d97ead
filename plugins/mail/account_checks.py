"""Checks the parts of an account. Each problem is described in a sentence of its own."""

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from plugins.mail.errors import BadAccount
from plugins.mail.models import Auth, Tls

#: RFC 1035, section 2.3.4: a name has at most 255 octets.
LONGEST_HOST = 255
HOST = re.compile(r"[\w.:-]+", re.ASCII)
LONGEST_NAME = 100
LONGEST_TEXT = 1000
SECRET_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}")
SHORTEST_INTERVAL = timedelta(seconds=10)
LONGEST_INTERVAL = timedelta(days=1)
SECOND = timedelta(seconds=1)
#: The default ports: RFC 9051, section 2.1, and RFC 8314 for implicit TLS.
PORTS = {Tls.IMPLICIT: 993, Tls.STARTTLS: 143, Tls.NONE: 143}
THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


def check(parts: Mapping[str, Any]) -> None:
    """Raise BadAccount unless ``parts``, alone and together, describe a valid account."""
    problems = [problem for name, value in parts.items() if (problem := _problem(name, value))]
    if problems := problems or _contradictions(parts):
        raise BadAccount(problems)


def _problem(name: str, value: Any) -> str:
    expected = _expected(name, value)
    return f"bad {name}={value!r}; expected {expected}" if expected else ""


def _expected(name: str, value: Any) -> str:
    """Return the rule that ``value`` violates, or an empty text if it violates none."""
    match name:
        case "name":
            return "" if _is_text(value, LONGEST_NAME) else f"1 to {LONGEST_NAME} printable characters"
        case "host":
            is_host = _is_text(value, LONGEST_HOST) and HOST.fullmatch(value)
            return "" if is_host else "the name or the address of a host, such as imap.example.org"
        case "port":
            return "" if _is_number(value) and 1 <= value <= 65535 else "a number from 1 to 65535"
        case "tls":
            return "" if value in list(Tls) else "'implicit', 'starttls' or 'none'"
        case "auth":
            return "" if value in list(Auth) else "'password', 'refresh_token' or 'client_credentials'"
        case "every":
            return "" if _is_interval(value) else "whole seconds, from 10 seconds to 1 day"
        case "is_urgent":
            return "" if isinstance(value, bool) else "True or False"
        case "username" | "folder":
            return "" if _is_text(value, LONGEST_TEXT) else f"1 to {LONGEST_TEXT} printable characters"
        case _:
            return "" if value is None else _expected_of_optional(name, value)


def _expected_of_optional(name: str, value: Any) -> str:
    match name:
        case "secret":
            is_name = isinstance(value, str) and SECRET_NAME.fullmatch(value)
            return "" if is_name else "the name of a secret: letters, digits, '.', '_' and '-'"
        case "ca_file":
            return "" if _is_text(value, LONGEST_TEXT) and PurePosixPath(value).is_absolute() else "an absolute path"
        case "token_url":
            return "" if _is_token_url(value) else "an address that begins with https://"
        case _:
            return "" if _is_text(value, LONGEST_TEXT) else f"1 to {LONGEST_TEXT} printable characters"


def _contradictions(parts: Mapping[str, Any]) -> list[str]:
    auth = parts["auth"]
    needed = {
        Auth.PASSWORD: ["secret"],
        Auth.REFRESH_TOKEN: ["token_url", "client_id"],
        Auth.CLIENT_CREDENTIALS: ["token_url", "client_id", "secret"],
    }[Auth(auth)]
    return [f"auth={str(auth)!r} needs {name}" for name in needed if not parts[name]]


def _is_text(value: object, longest: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable() and value == value.strip()


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_interval(value: object) -> bool:
    return isinstance(value, timedelta) and not value % SECOND and SHORTEST_INTERVAL <= value <= LONGEST_INTERVAL


def _is_token_url(value: object) -> bool:
    """Return whether secrets may be sent to this URL: it is encrypted, or on this machine."""
    if not isinstance(value, str) or not _is_text(value, LONGEST_TEXT):
        return False
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:
        return False
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and host in THIS_MACHINE)
    return is_safe and bool(host) and not parts.username
