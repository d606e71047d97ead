"""Logs a browser in by a link or a token, and logs it out. Log-ins at an OpenID Connect provider begin their sessions
here too.
"""

from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from core.operations import tokens
from core.operations.tokens import SESSION_LASTS
from core.web import callers, service
from core.web.pages import places
from core.web.pages.rendering import rendered

router = APIRouter(include_in_schema=False)


@router.get("/login")
def login_page(
    request: Request,
    link: Annotated[str, Query(max_length=200)] = "",
    back: Annotated[str, Query(max_length=places.LONGEST)] = "",
) -> Response:
    """Show a form. A link is used up only when the form is sent, so a preview of the link does no harm."""
    has_provider = service.of(request).provider is not None
    return rendered(request, "login.html", link=link, back=back, has_provider=has_provider, said="")


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Begin a session, and show the page that the browser wanted, or the first page."""
    callers.refuse_cross_origin(request)
    form = parse_qs((await request.body()).decode(errors="replace"))
    secret, back = (form.get(name, [""])[0] for name in ("secret", "back"))
    places.want(request, back)
    return await run_in_threadpool(begin, request, secret, back)


def begin(request: Request, secret: str, back: str = "") -> Response:
    """Return the answer that gives a browser its session. Raises NotAuthenticated or TooManyFailures."""
    parts = service.of(request)
    with parts.failed.counted(callers.address_of(request), secret), parts.engine.begin() as connection:
        session = tokens.log_in(connection, secret)
    return with_session(request, session, back)


def with_session(request: Request, session: str, back: str = "") -> Response:
    """Return the answer that gives a browser its session, and shows the page at ``back`` or the first page."""
    answer = RedirectResponse(places.checked(back, str(request.scope["root_path"])), status_code=303)
    lasting = round(SESSION_LASTS.total_seconds())
    answer.set_cookie(callers.cookie_name(request), session, max_age=lasting, **attributes(request))
    return answer


def attributes(request: Request) -> dict[str, Any]:
    """Return the attributes of every cookie: no script and no other site can use it."""
    return {"httponly": True, "secure": callers.cookie_name(request) == callers.COOKIE, "samesite": "lax"}


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session."""
    callers.refuse_cross_origin(request)
    name = callers.cookie_name(request)
    with service.of(request).engine.begin() as connection:
        tokens.log_out(connection, request.cookies.get(name, ""))
    answer = RedirectResponse(f"{request.scope['root_path']}/login", status_code=303)
    answer.delete_cookie(name, **attributes(request))
    return answer
