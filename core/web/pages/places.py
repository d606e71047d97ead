"""Places within the service, to which a browser returns after a form or a log-in."""

import re
from urllib.parse import quote

from starlette.requests import Request

LONGEST = 2000
#: A path without characters that a browser could read as the address of another server.
SAFE = re.compile(r"/(?!/)[^\\\x00-\x20\x7f]*")


def of(request: Request) -> str:
    """Return the place that a request is for: its path with the prefix, and its query."""
    query = request.scope["query_string"].decode("latin-1")
    path = quote(str(request.scope["path"]))
    return f"{path}?{query}" if query else path


def want(request: Request, place: str) -> None:
    """Keep the place that a browser wanted before its log-in, for the page that follows if the log-in fails."""
    request.state.wanted = checked(place, str(request.scope["root_path"])) if place else ""


def wanted(request: Request) -> str:
    """Return the place that ``want`` has kept for this request, or an empty text."""
    return str(getattr(request.state, "wanted", ""))


def checked(place: str, prefix: str) -> str:
    """Return ``place``, or the first page if it is not a place within the service."""
    is_ours = SAFE.fullmatch(place) and (not prefix or place.startswith(f"{prefix}/"))
    return place if is_ours and len(place) <= LONGEST else f"{prefix}/"
