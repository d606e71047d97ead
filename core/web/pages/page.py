"""What every page gets: who looks at it, the links, and the ways to answer."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from starlette.responses import RedirectResponse, Response

from core.jobs.registry import Registry
from core.ledger.audit import Action, Actor
from core.operations import access, why
from core.web import callers, service
from core.web.callers import Caller
from core.web.pages import places, plugin_links
from core.web.pages.rendering import address, rendered

#: The cookie with a sentence about what was done. The next page shows it, and removes it.
SAID = "rota-said"
SAID_SECONDS = 30
LONGEST_SAID = 500
#: Parameters of addresses that may have several values.
SEVERAL = frozenset({"arg"})
#: The pages to which every page has a link in its head, and their names.
NAV = (
    ("/", "Now"),
    ("/schedules", "Schedules"),
    ("/runs", "Runs"),
    ("/failures", "Failures"),
    ("/jobs", "Jobs"),
    ("/queues", "Queues"),
    ("/workers", "Workers"),
    ("/why", "Why"),
)
FURTHER = (("/operations", "Operations"), ("/pauses", "Pauses"), ("/orphans", "Orphans"))
#: Pages that concern more than single jobs. People with limits may not see them.
OF_EVERYTHING = (
    ("/plugins", "Plugins"),
    ("/releases", "Releases"),
    ("/audit", "Audit"),
)
FOR_ADMINS = (("/tokens", "Tokens"),)
API = ("/api", "API")


@dataclass(frozen=True, slots=True)
class Page:
    """A page for one person."""

    request: Request
    caller: Actor

    @property
    def registry(self) -> Registry:
        """The jobs that are loaded here."""
        return service.of(self.request).registry

    def zone(self, job: str) -> ZoneInfo:
        """Return the time zone in which the times of a job are shown."""
        return why.zone_of(self.registry, job)

    @property
    def nav(self) -> tuple[tuple[str, str], ...]:
        """The pages that are always at hand."""
        return NAV

    @property
    def further(self) -> tuple[tuple[str, str], ...]:
        """The other pages."""
        own = plugin_links.reachable(self.request.app.state.plugin_pages, self.caller)
        return (
            *own,
            *FURTHER,
            *(OF_EVERYTHING if self.sees_all else ()),
            *(FOR_ADMINS if self.sees_tokens else ()),
            API,
        )

    @property
    def is_further(self) -> bool:
        """Whether this is one of the other pages."""
        return any(self.is_here(path) for path, _ in self.further)

    def is_here(self, path: str) -> bool:
        """Return whether this page is at ``path`` or below it."""
        own = str(self.request.scope["path"]).removeprefix(str(self.request.scope["root_path"]))
        return own == path or (path != "/" and own.startswith(f"{path}/"))

    def filter(self, *names: str) -> dict[str, str | list[str]]:
        """Return the parameters of this address with these names. Other parameters mean nothing to the page.

        Those of ``SEVERAL`` are lists. Of any other parameter only the last value counts.
        """
        given = self.request.query_params
        return {name: given.getlist(name) if name in SEVERAL else given[name] for name in names if name in given}

    def may(self, action: Action) -> bool:
        """Return whether the role of the person allows an action."""
        return access.allows(self.caller, action)

    @property
    def sees_all(self) -> bool:
        """Whether the person has no limits, which some pages need."""
        return not access.is_limited(self.caller)

    @property
    def sees_tokens(self) -> bool:
        """Whether the person may see the list of tokens."""
        return self.sees_all and self.may("tokens create")

    def shown(self, template: str, status: int = 200, **values: Any) -> Response:
        """Return the page."""
        said = unquote(self.request.cookies.get(SAID, ""))
        answer = rendered(
            self.request, template, status, page=self, here=places.of(self.request), said=said[:LONGEST_SAID], **values
        )
        if said:
            answer.delete_cookie(SAID, path=self._cookie_path)
        return answer

    def place(self, path: str) -> str:
        """Return a place of this service, with the prefix."""
        return address(str(self.request.scope["root_path"]), path)

    def back(self, place: str, said: str) -> Response:
        """Send the browser to a place of this service, after a form has changed something. It shows ``said`` there."""
        prefix = str(self.request.scope["root_path"])
        answer = RedirectResponse(places.checked(place, prefix), status_code=303)
        answer.set_cookie(
            SAID,
            quote(said[:LONGEST_SAID]),
            max_age=SAID_SECONDS,
            path=self._cookie_path,
            secure=callers.cookie_name(self.request) == callers.COOKIE,
            httponly=True,
            samesite="lax",
        )
        return answer

    @property
    def _cookie_path(self) -> str:
        return str(self.request.scope["root_path"]) or "/"


def page(request: Request, caller: Caller) -> Page:
    """Return what the page of a request gets. Raises the errors of ``callers.caller``."""
    return Page(request, caller)


Shown = Annotated[Page, Depends(page)]


class PageRoute(APIRoute):
    """A route of a page. A form of a list sends its empty fields too; the address is then shortened."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers requests."""
        answer = super().get_route_handler()

        async def shortened(request: Request) -> Response:
            given = parse_qsl(request.url.query, keep_blank_values=True)
            kept = [(name, value.strip()) for name, value in given if value.strip()]
            if request.method != "GET" or kept == given:
                return await answer(request)
            path = quote(str(request.scope["path"]))
            return RedirectResponse(f"{path}?{urlencode(kept)}" if kept else path, 303)

        return shortened


def router() -> APIRouter:
    """Return a router for pages, which are not part of the API's document."""
    return APIRouter(include_in_schema=False, route_class=PageRoute)
