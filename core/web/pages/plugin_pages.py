"""Pages that plugins bring: what a route of a plugin returns, as a table or as facts. A plugin writes no HTML."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from core.jobs.routes import Route
from core.ledger.audit import Actor
from core.web.pages import plugin_links
from core.web.pages.page import Page

place = plugin_links.place


def shown(plugin: str, route: Route, routes: Iterable[Route], request: Request, caller: Actor, body: bytes) -> Response:
    """Return the page that shows the JSON ``body``: a list of objects as a table, and an object as facts."""
    found = json.loads(body)
    items = found if isinstance(found, list) and all(isinstance(each, dict) for each in found) else None
    return Page(request, caller).shown(
        "plugin_page.html",
        plugin=plugin,
        title=route.title,
        named={**request.path_params},
        found=found,
        items=items,
        columns=columns(items or []),
        link=lambda item: plugin_links.of_item(plugin, route, routes, item),
    )


def columns(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of all fields, in the order in which they come first."""
    return list(dict.fromkeys(name for item in items for name in item))
