"""Calls the HTTP service in this process, on the database of a test."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine
from starlette.testclient import TestClient

from core import settings
from core.ledger.audit import Actor
from core.operations import tokens
from core.operations.tokens import Wanted
from core.plugins import loading
from core.web import app, failed_secrets, service
from core.web.failed_secrets import FailedSecrets
from core.web.server import Server
from core.web.server import config as server_config
from core.web.service import Service
from core.web.writes import PER_MINUTE, Writes
from tests.support.eventually import eventually


@contextmanager
def serving(
    *,
    address: str = "127.0.0.1",
    per_minute: int = PER_MINUTE,
    failures_per_minute: int = failed_secrets.PER_MINUTE,
    **changed: Any,
) -> Iterator[TestClient]:
    """Yield a client of the whole application. ``changed`` are settings, and ``address`` is the client's address."""
    configured = settings.load().model_copy(update=changed)
    with service.opened(configured, loading.current()) as parts:
        parts = replace(parts, writes=Writes(per_minute), failed=FailedSecrets(failures_per_minute))
        routes = app.make(parts)
        client = TestClient(
            app.surrounded(routes, parts),
            base_url="http://127.0.0.1:9190",
            client=(address, 50000),
            raise_server_exceptions=False,
        )
        client.openapi, client.application, client.calls = routes.openapi, client.app, parts.calls
        yield client


@dataclass
class Listening:
    """A service that listens on a port of this machine, in a thread of this process."""

    address: str
    parts: Service
    server: Server
    thread: threading.Thread

    def stop(self) -> float:
        """Stop it as a signal does. Return how many seconds that took."""
        began = time.monotonic()
        self.parts.stopping.set()
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()
        return time.monotonic() - began


@contextmanager
def listening(**changed: Any) -> Iterator[Listening]:
    """A service at a real address; ``changed`` are settings."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        configured = settings.load().model_copy(update={"web_port": port, **changed})
        parts = stack.enter_context(service.opened(configured, loading.current()))
        server = Server(server_config(app.surrounded(app.make(parts), parts)), parts.stopping)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        served = Listening(f"http://127.0.0.1:{port}{configured.web_prefix}", parts, server, thread)
        stack.callback(served.stop)
        eventually(lambda: server.started)
        yield served


def bearer(database: Engine, role: str, name: str | None = None, **limits: Any) -> dict[str, str]:
    """Return the headers of a caller with a token of ``role``, which is valid for a day."""
    wanted = Wanted(name or f"the-{role}", role, lasting=timedelta(days=1), **limits)
    with database.begin() as connection:
        made = tokens.create(connection, wanted, Actor("ann", "cli"))
    return {"Authorization": f"Bearer {made.token}"}
