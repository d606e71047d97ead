"""The address of the service itself, which people type: leads a browser to the API, or to the log-in first."""

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from core.errors import NotAuthenticated
from core.web import callers
from core.web.refusals import TooManyFailures

router = APIRouter(include_in_schema=False)


@router.get("/")
def front(request: Request) -> RedirectResponse:
    """Lead a browser on. Raises Forbidden for a person without a role."""
    try:
        callers.by_browser(request)
    except (NotAuthenticated, TooManyFailures):
        place = "/login"
    else:
        place = "/api"
    return RedirectResponse(f"{request.scope['root_path']}{place}", status_code=303)
