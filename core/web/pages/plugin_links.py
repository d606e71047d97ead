"""The places of the pages that plugins bring, and the links to them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.errors import Forbidden
from core.jobs.routes import Route
from core.ledger.audit import Actor
from core.operations import plugin_routes


def place(plugin: str) -> str:
    """Return the path of the pages of ``plugin``."""
    return f"/plugins/{plugin}"


def reachable(pages: Iterable[tuple[str, Route]], caller: Actor) -> Iterator[tuple[str, str]]:
    """Yield the path and the title of each page without parameters that ``caller`` may see."""
    for plugin, route in pages:
        if "{" not in route.path and may_see(plugin, route, caller):
            yield place(plugin) + route.path, route.title


def may_see(plugin: str, route: Route, caller: Actor) -> bool:
    """Return whether ``caller`` may call a route."""
    try:
        plugin_routes.check(caller, plugin, route)
    except Forbidden:
        return False
    return True


def of_item(plugin: str, route: Route, routes: Iterable[Route], item: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the field of an item of a list that leads to the item's own page, and the path of that page, or None.

    That page has the path of the list and one parameter, which has the name of the field.
    """
    for other in routes:
        name = other.path.removeprefix(f"{route.path}/")
        field = name.removeprefix("{").removesuffix("}")
        if other.title and name == f"{{{field}}}" and isinstance(item.get(field), str | int):
            text = str(item[field])
            if text and "/" not in text and text not in {".", ".."}:
                return field, f"{place(plugin)}{route.path}/{text}"
    return None
