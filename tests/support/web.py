"""The HTTP service, called in this process, on the database of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.testclient import TestClient

from core import settings
from core.plugins import loading
from core.web import app, service


@contextmanager
def serving(*, address: str = "127.0.0.1", **changed: Any) -> Iterator[TestClient]:
    """A client of the whole application; ``changed`` are settings, ``address`` is that of the client."""
    configured = settings.load().model_copy(update=changed)
    with service.opened(configured, loading.current()) as parts:
        routes = app.make(parts)
        client = TestClient(
            app.surrounded(routes, parts),
            base_url="http://127.0.0.1:9190",
            client=(address, 50000),
            raise_server_exceptions=False,
        )
        client.openapi = routes.openapi
        yield client
