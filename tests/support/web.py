"""The HTTP service, called in this process, on the database of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from starlette.testclient import TestClient

from core import settings
from core.plugins import loading
from core.web import app, service
from core.web.writes import PER_MINUTE, Writes


@contextmanager
def serving(*, address: str = "127.0.0.1", per_minute: int = PER_MINUTE, **changed: Any) -> Iterator[TestClient]:
    """A client of the whole application; ``changed`` are settings, ``address`` is that of the client."""
    configured = settings.load().model_copy(update=changed)
    with service.opened(configured, loading.current()) as parts:
        parts = replace(parts, writes=Writes(per_minute))
        routes = app.make(parts)
        client = TestClient(
            app.surrounded(routes, parts),
            base_url="http://127.0.0.1:9190",
            client=(address, 50000),
            raise_server_exceptions=False,
        )
        client.openapi, client.application, client.calls = routes.openapi, client.app, parts.calls
        yield client
