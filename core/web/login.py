"""Logs a browser in by a link or a token, and logs it out. Log-ins at an OpenID Connect provider begin their sessions
here too.
"""

from html import escape
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from core.operations import tokens
from core.operations.tokens import SESSION_LASTS
from core.web import callers, service

router = APIRouter(include_in_schema=False)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Rota: log in</title></head><body>
<h1>Rota</h1>
<form method="post" action="{action}">{field}<button>Log in</button></form>
{elsewhere}</body></html>
"""
ASKED = '<label>Token or link <input type="password" name="secret" autocomplete="off" required></label> '


ELSEWHERE = '<p><a href="{address}">Log in with the account of your organisation</a></p>\n'


@router.get("/login")
def login_page(request: Request, link: Annotated[str, Query(max_length=200)] = "") -> HTMLResponse:
    """Show a form. A link is used up only when the form is sent, so a preview of the link does no harm."""
    field = f'<input type="hidden" name="secret" value="{escape(link)}">' if link else ASKED
    prefix = escape(request.scope["root_path"])
    has_provider = service.of(request).provider is not None
    elsewhere = ELSEWHERE.format(address=f"{prefix}/login/oidc") if has_provider else ""
    return HTMLResponse(PAGE.format(action=f"{prefix}/login", field=field, elsewhere=elsewhere))


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Begin a session, and show the API."""
    callers.refuse_cross_origin(request)
    form = parse_qs((await request.body()).decode(errors="replace"))
    return await run_in_threadpool(begin, request, form.get("secret", [""])[0])


def begin(request: Request, secret: str) -> Response:
    """Return the answer that gives a browser its session. Raises NotAuthenticated."""
    with service.of(request).engine.begin() as connection:
        session = tokens.log_in(connection, secret)
    return with_session(request, session)


def with_session(request: Request, session: str) -> Response:
    """Return the answer that gives a browser its session, and shows the API."""
    answer = RedirectResponse(f"{request.scope['root_path']}/api", status_code=303)
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
