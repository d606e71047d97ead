"""``Route``: a route of the HTTP service that a plugin adds. Its module is imported when ``rota web`` starts."""

import re
from dataclasses import dataclass
from typing import Literal

from core.jobs.commands import PLACE

PATH = re.compile(r"(/([a-z0-9][a-z0-9_-]*|\{[a-z][a-z0-9_]*\}))+")
#: The methods of routes that change nothing. The functions of such routes get a session that cannot write.
READING = frozenset({"GET"})
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
#: The most characters of the title of a page.
LONGEST_TITLE = 40
ROLES = ("viewer", "operator", "admin")


@dataclass(frozen=True, slots=True)
class Route:
    """A route of a plugin below ``/api/v1/plugins/NAME``, for the hook ``register_routes``.

    ``path`` begins with a slash and may have parameters: ``/accounts/{name}``. ``place`` names a function as
    ``package.module:name``. ``role`` is the lowest role that may call the route. A route that changes something needs
    at least an operator. A ``GET`` route with a ``title`` also has a page, at ``/plugins/NAME`` and its path.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    place: str
    role: Literal["viewer", "operator", "admin"]
    title: str = ""

    @property
    def is_reading(self) -> bool:
        """Whether the route changes nothing."""
        return self.method in READING

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def problem(route: object) -> str:
    """Return why a plugin may not add ``route``, or an empty text if it may."""
    if not isinstance(route, Route):
        return f"{route!r}, which is not a Route"
    if route.method not in METHODS:
        return f"a route with the method {route.method!r}; expected one of {', '.join(sorted(METHODS))}"
    if not isinstance(route.path, str) or not PATH.fullmatch(route.path):
        return f"a route with the path {route.path!r}; expected a path such as '/invoices/{{number}}'"
    if not isinstance(route.place, str) or not PLACE.fullmatch(route.place):
        return f"the route {route} at {route.place!r}; expected a place such as 'billing.routes:invoices'"
    if route.role not in ROLES:
        return f"the route {route} with the role {route.role!r}; expected one of {', '.join(ROLES)}"
    if route.role == ROLES[0] and not route.is_reading:
        return f"the route {route} with the role viewer, which may change nothing; expected the role operator or admin"
    if not isinstance(route.title, str) or len(route.title) > LONGEST_TITLE:
        return f"the route {route} with the title {route.title!r}; expected a text of up to {LONGEST_TITLE} characters"
    if route.title and not route.is_reading:
        return f"the route {route} with a title, which only a GET route may have"
    return ""
