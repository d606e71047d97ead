"""Logs a browser in at the OpenID Connect provider: sends it there, and begins its session when it comes back."""

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from core.errors import NotAuthenticated
from core.operations import groups, tokens
from core.web import callers, login, service
from core.web.oidc import BACK, Flow, Person, word
from core.web.pages import places
from core.web.problems import not_there

router = APIRouter(include_in_schema=False)

#: How long a person may take to log in.
FLOW_SECONDS = 600
START = "/login/oidc"
ELSEWHERE = "the log-in did not begin in this browser, or took more than 10 minutes; begin again"
Text = Annotated[str, Query(max_length=4096)]


@router.get(START)
def begin(request: Request, back: Annotated[str, Query(max_length=places.LONGEST)] = "") -> Response:
    """Send a browser to the provider. When it comes back, it is shown the place ``back``."""
    provider = service.of(request).provider
    if provider is None:
        return not_there(request)
    flow = Flow(secrets.token_hex(32))
    answer = RedirectResponse(provider.address(flow), status_code=303)
    answer.set_cookie(flow_cookie(request), kept(flow, back), max_age=FLOW_SECONDS, **login.attributes(request))
    return answer


@router.get(BACK)
def finish(request: Request, code: Text = "", state: Text = "", error: Text = "", iss: Text = "") -> Response:
    """Begin the session of a person whom the provider sends back.

    Raises NotAuthenticated, Forbidden or TooManyFailures. Only an answer to a log-in that began in this browser counts
    as a failure, since another site could send a browser here.
    """
    parts = service.of(request)
    provider = parts.provider
    if provider is None:
        return not_there(request)
    flow, back = begun(request.cookies.get(flow_cookie(request), ""))
    places.want(request, back)
    if not flow.secret or not hmac.compare_digest(flow.state.encode(), state.encode(errors="replace")):
        raise NotAuthenticated(ELSEWHERE)
    if iss and iss != parts.configured.oidc_issuer:
        raise NotAuthenticated("another provider answered")
    if error or not code:
        raise NotAuthenticated(f"the provider refused the log-in: {word(error or 'no code')}")
    with parts.failed.counted(callers.address_of(request), code):
        person = provider.person(flow, code)
    answer = welcome(request, person, back)
    answer.delete_cookie(flow_cookie(request), **login.attributes(request))
    return answer


def kept(flow: Flow, back: str) -> str:
    """Return the cookie of a log-in: its secret, and the place that the browser wanted."""
    place = back.encode(errors="replace")
    return f"{flow.secret}.{urlsafe_b64encode(place).decode()}" if len(place) <= places.LONGEST else flow.secret


def begun(cookie: str) -> tuple[Flow, str]:
    """Return the log-in that a cookie has kept, and the place that the browser wanted."""
    secret, _, place = cookie.partition(".")
    try:
        return Flow(secret), urlsafe_b64decode(place).decode()
    except ValueError:
        return Flow(secret), ""


def welcome(request: Request, person: Person, back: str) -> Response:
    """Return the answer that gives a person a session, with the rights of the person's groups. Raises Forbidden."""
    rights = groups.rights_of(service.of(request).configured, person.name, person.groups)
    with service.of(request).engine.begin() as connection:
        session = tokens.begin_session(connection, person.name, rights, by="oidc")
    return login.with_session(request, session, back)


def flow_cookie(request: Request) -> str:
    """Return the name of the cookie of a log-in."""
    return f"{callers.cookie_name(request)}-login"
