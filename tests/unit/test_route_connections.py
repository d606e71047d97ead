"""A request has one connection to PostgreSQL: with two, a few requests could hold the whole pool and wait for ever."""

from core.web import app
from core.web.api.ledger import changing, engine, reading


def every(routes):
    """All routes with a function, also those of routers that are included."""
    for route in routes:
        if hasattr(route, "dependant"):
            yield route
        inner = getattr(route, "original_router", None)
        yield from every(inner.routes if inner is not None else [])


def connections(dependant):
    """The ways in which a route gets connections. A dependency that several others have is called once."""
    own = {dependant.call} & {reading, changing, engine}
    return own.union(*(connections(each) for each in dependant.dependencies))


def test_no_route_has_two_connections():
    found = {
        f"{sorted(route.methods)} {route.path}": connections(route.dependant) for route in every(app.make(None).routes)
    }

    assert len(found) > 80
    assert {name: ways for name, ways in found.items() if len(ways) > 1} == {}
