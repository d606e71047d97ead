"""Errors as pages, for browsers. A browser without a session is sent to the page on which people log in."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from core.web.pages import places
from core.web.pages.rendering import address, rendered

#: Requests for other addresses are answered with JSON, even if a browser sends them.
FOR_PROGRAMS = ("/api/v1/", "/admin/", "/health", "/metrics", "/static/")
#: A page that says what is away asks again after this many seconds.
AGAIN_SECONDS = 5


def is_wanted(scope: Mapping[str, Any]) -> bool:
    """Return whether a request comes from a browser that shows a page."""
    path = str(scope["path"]).removeprefix(str(scope["root_path"]))
    accepted = [value for name, value in scope["headers"] if name == b"accept"]
    return any(b"text/html" in value for value in accepted) and not path.startswith(FOR_PROGRAMS)


def page(scope: Mapping[str, Any], problem: Any, headers: Mapping[str, str]) -> Response:
    """Return the page for a problem, or for a browser without a session the way to log in."""
    request = Request(dict(scope))
    path = str(scope["path"]).removeprefix(str(scope["root_path"]))
    if problem.status != 401:
        answer = rendered(
            request,
            "error.html",
            problem.status,
            problem=problem,
            asks_again=problem.status == 503 and request.method in {"GET", "HEAD"},
            again=AGAIN_SECONDS,
            back=came_from(request),
        )
    elif path.startswith("/login"):
        has_provider = request.app.state.service.provider is not None
        back = places.wanted(request)
        answer = rendered(
            request, "login.html", 401, said=problem.detail, link="", has_provider=has_provider, back=back
        )
    else:
        place = places.of(request) if request.method == "GET" else ""
        answer = RedirectResponse(address(scope["root_path"], "/login", back=place), 303)
    answer.headers.update(headers)
    return answer


def came_from(request: Request) -> str:
    """Return the page of this service from which a form was sent, or the first page."""
    said = urlsplit(request.headers.get("referer", ""))
    is_ours = said.netloc.lower() == request.headers.get("host", "").lower()
    place = f"{said.path}?{said.query}" if said.query else said.path
    return places.checked(place if is_ours else "", str(request.scope["root_path"]))
