"""Identifies the caller: by a token, by a trusted proxy, or by the cookie of a browser that has logged in."""

import hmac
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from fastapi import Depends, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from core.errors import NotAuthenticated
from core.ledger.audit import Actor
from core.operations import groups, tokens, web_address
from core.web import service
from core.web.refusals import CrossOrigin

#: The methods that change nothing.
SAFE = {"GET", "HEAD", "OPTIONS"}
#: The names of the cookie of a session. Browsers accept the first name only over HTTPS, which a service on this machine
#: does not have.
COOKIE, LOCAL_COOKIE = "__Host-rota", "rota"
#: The name in the audit for a caller with ``ROTA_WEB_TOKEN``.
SETTLED = "ROTA_WEB_TOKEN"

bearer = HTTPBearer(auto_error=False, scheme_name="token", description="A token of `rota tokens create`.")
cookie = APIKeyCookie(name=COOKIE, auto_error=False, scheme_name="session", description="A browser that has logged in.")


def caller(
    request: Request,
    shown: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
    _session: Annotated[str | None, Security(cookie)],
) -> Actor:
    """Return the caller. Raises NotAuthenticated, Forbidden, CrossOrigin, TooManyFailures or TooManyWrites."""
    actor = by_token(request, shown.credentials) if shown else by_browser(request)
    if request.method not in SAFE:
        service.of(request).writes.take(actor.name)
    return tokens.with_facts(actor, request=request.scope["state"]["request_id"], address=address_of(request))


#: The parameter of every route that is not public.
Caller = Annotated[Actor, Depends(caller)]


def by_token(request: Request, secret: str) -> Actor:
    """Return the holder of a token. Raises NotAuthenticated or TooManyFailures."""
    parts = service.of(request)
    settled = parts.configured.web_token
    with parts.failed.counted(address_of(request), secret):
        if settled is not None and hmac.compare_digest(settled.get_secret_value().encode(), secret.encode()):
            return Actor(SETTLED, tokens.HTTP)
        with parts.engine.begin() as connection:
            return tokens.holder(connection, secret)


def by_browser(request: Request) -> Actor:
    """Return the caller whom a trusted proxy names, or to whom the session of a cookie belongs.

    Raises NotAuthenticated, Forbidden, CrossOrigin or TooManyFailures.
    """
    user = request.scope["state"].get("user")
    if user is None:
        return by_session(request)
    if request.method not in SAFE:
        refuse_cross_origin(request)
    return groups.person(service.of(request).configured, user.name, user.groups, by="proxy")


def by_session(request: Request) -> Actor:
    """Return the caller to whom a cookie's session belongs. Raises NotAuthenticated, CrossOrigin or TooManyFailures."""
    secret = request.cookies.get(cookie_name(request))
    if not secret:
        raise NotAuthenticated("the request has neither a token nor the cookie of a session")
    if request.method not in SAFE:
        refuse_cross_origin(request)
    parts = service.of(request)
    with parts.failed.counted(address_of(request), secret, is_session=True), parts.engine.begin() as connection:
        return tokens.holder(connection, secret, kind="session")


def refuse_cross_origin(request: Request) -> None:
    """Raise CrossOrigin unless a request that changes something comes from the service's own pages.

    Browsers send Sec-Fetch-Site over HTTPS and on this machine. Where it is missing, the host of Origin must be the
    service's own.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    is_ours = site in {"same-origin", "none"} if site else bool(origin) and is_host(request, str(origin))
    if not is_ours:
        raise CrossOrigin("a browser sent this request for another site, or does not say for which site")


def is_host(request: Request, origin: str) -> bool:
    """Return whether an Origin has the host and the port of the request, and uses HTTPS if the request does."""
    said, host = split(origin), request.headers.get("host", "").lower()
    is_as_safe = said.scheme == "https" or request.scope["scheme"] != "https"
    return is_as_safe and bool(host) and said.netloc.lower() == host


def split(address: str) -> SplitResult:
    """Return the parts of an address. All parts are empty if ``address`` is not an address."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def cookie_name(request: Request) -> str:
    """Return the name of the cookie: ``LOCAL_COOKIE`` if the request is for an address of this machine."""
    host = split(f"//{request.headers.get('host', '')}").hostname or ""
    return LOCAL_COOKIE if web_address.is_loopback(host) else COOKIE


def address_of(request: Request) -> str | None:
    """Return the address of the client."""
    return request.client.host if request.client else None
