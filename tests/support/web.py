"""Calls the HTTP service in this process, on the database of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine
from starlette.testclient import TestClient

from core import settings
from core.ledger.audit import Actor
from core.operations import tokens
from core.operations.tokens import Wanted
from core.plugins import loading
from core.web import app, service
from core.web.writes import PER_MINUTE, Writes


@contextmanager
def serving(*, address: str = "127.0.0.1", per_minute: int = PER_MINUTE, **changed: Any) -> Iterator[TestClient]:
    """Yield a client of the whole application. ``changed`` are settings, and ``address`` is the client's address."""
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


def bearer(database: Engine, role: str, name: str | None = None, **limits: Any) -> dict[str, str]:
    """Return the headers of a caller with a token of ``role``, which is valid for a day."""
    wanted = Wanted(name or f"the-{role}", role, lasting=timedelta(days=1), **limits)
    with database.begin() as connection:
        made = tokens.create(connection, wanted, Actor("ann", "cli"))
    return {"Authorization": f"Bearer {made.token}"}
