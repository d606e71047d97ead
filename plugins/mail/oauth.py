"""Asks a token server for an access token by one HTTP POST, with a refresh token or client credentials (RFC 6749)."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from plugins.mail.errors import ConnectFailed, LoginGivenUp, LoginRefused, PollFailed, ServerBusy
from plugins.mail.settings import MailSettings

if TYPE_CHECKING:
    from httpx2 import Response

#: The lifetime of a token if the server does not state it (RFC 6749, section 5.1, leaves it open).
UNTOLD = timedelta(minutes=10)
LONGEST = timedelta(days=365)
#: These errors (RFC 6749, section 5.2) remain until a person acts.
FINAL = {"invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope"}
BUSY = {429, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class Client:
    """The source of an account's tokens. ``secret`` is the name of the client's secret."""

    token_url: str
    client_id: str
    scope: str | None
    secret: str | None


@dataclass(frozen=True, slots=True)
class Granted:
    """The answer of a token server. Its ``repr`` does not show the tokens."""

    access_token: str = field(repr=False)
    #: A new refresh token, if the server replaces the present one.
    refresh_token: str | None = field(repr=False)
    lasting: timedelta


def ask(client: Client, client_secret: str | None, refresh_token: str | None) -> Granted:
    """Ask for an access token, with ``refresh_token`` if the account has one.

    Raises LoginGivenUp if the grant was revoked. Raises LoginRefused, ServerBusy or ConnectFailed for other refusals
    and errors.
    """
    import httpx2

    settings = MailSettings.current()
    limits = httpx2.Timeout(settings.read_seconds, connect=settings.connect_seconds)
    try:
        answer = httpx2.post(client.token_url, data=_form(client, client_secret, refresh_token), timeout=limits)
    except httpx2.HTTPError as error:
        raise ConnectFailed(f"the token server {client.token_url} cannot be reached: {type(error).__name__}") from None
    body = _body(answer)
    if answer.status_code != 200:
        raise _refusal(client, answer.status_code, body)
    return _granted(client, body)


def _form(client: Client, client_secret: str | None, refresh_token: str | None) -> dict[str, str]:
    grant = "refresh_token" if refresh_token is not None else "client_credentials"
    form = {
        "grant_type": grant,
        "client_id": client.client_id,
        "client_secret": client_secret,
        "refresh_token": refresh_token,
        "scope": client.scope,
    }
    return {name: value for name, value in form.items() if value is not None}


def _body(answer: "Response") -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(client: Client, status: int, body: dict[str, Any]) -> PollFailed:
    """Return the error for a status other than 200, without the server's own words, which may name the person."""
    error = body.get("error")
    known = error if isinstance(error, str) and error.isascii() and error.isprintable() and len(error) < 50 else "none"
    told = f"the token server {client.token_url} answered {status}, error {known}"
    if status in BUSY or known == "temporarily_unavailable":
        return ServerBusy(told)
    if known in FINAL:
        return LoginGivenUp(f"{told}: the grant was revoked, or is not for this client; grant it again")
    return LoginRefused(told) if 400 <= status < 500 else ConnectFailed(told)


def _granted(client: Client, body: dict[str, Any]) -> Granted:
    token, refresh, seconds = (body.get(name) for name in ("access_token", "refresh_token", "expires_in"))
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
        raise LoginRefused(f"the token server {client.token_url} answered without an access token")
    return Granted(token, refresh if isinstance(refresh, str) and refresh else None, _lasting(seconds))


def _lasting(seconds: object) -> timedelta:
    """Return ``expires_in`` as a span. Some servers send it as text."""
    try:
        return min(timedelta(seconds=float(str(seconds))), LONGEST)
    except (ValueError, OverflowError):
        return UNTOLD
