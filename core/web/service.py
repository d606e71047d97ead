"""The parts that the routes use: the ledger, the registry, the settings and the health of the service."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine
from starlette.requests import Request

from core.jobs.registry import Registry
from core.operations import connections
from core.operations.service_health import Watch
from core.settings import Settings
from core.web import plugin_calls
from core.web.failed_secrets import FailedSecrets
from core.web.live.hub import Hub
from core.web.oidc import Provider
from core.web.plugin_calls import Calls
from core.web.writes import Writes

#: The time-out of a statement of a request, or of the watcher of live pages, which has a connection of its own.
STATEMENT_SECONDS = 2.0
#: The time-out of a statement of ``/health``.
HEALTH_STATEMENT_SECONDS = 1.0
#: This many requests may use PostgreSQL at the same time. Further requests wait for a connection.
CONNECTIONS = 5


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the HTTP service."""

    configured: Settings
    registry: Registry
    engine: Engine
    watch: Watch
    #: Tells browsers what changes in the ledger.
    live: Hub
    writes: Writes = field(default_factory=Writes)
    failed: FailedSecrets = field(default_factory=FailedSecrets)
    #: Set when the process is stopping. Long answers then end.
    stopping: threading.Event = field(default_factory=threading.Event)
    #: The calls of the routes of each plugin that has routes.
    calls: Mapping[str, Calls] = field(default_factory=dict)
    #: The OpenID Connect provider, if there is one.
    provider: Provider | None = None


@contextmanager
def opened(configured: Settings, registry: Registry) -> Iterator[Service]:
    """Yield the parts of this process. Its connections are closed at the end."""
    with ExitStack() as stack:
        engine = stack.enter_context(
            connections.ledger(configured, "rota-web", STATEMENT_SECONDS, pool_size=CONNECTIONS)
        )
        probed = stack.enter_context(
            connections.ledger(configured, "rota-health", HEALTH_STATEMENT_SECONDS, pool_size=1)
        )
        watched = stack.enter_context(connections.ledger(configured, "rota-live", STATEMENT_SECONDS, pool_size=1))
        calls = {plugin: stack.enter_context(plugin_calls.opened(configured, plugin)) for plugin in registry.routes()}
        provider = Provider(configured) if configured.oidc_issuer else None
        watch, stopping = Watch(probed, configured), threading.Event()
        live = Hub(watched, stopping)
        yield Service(configured, registry, engine, watch, live, stopping=stopping, calls=calls, provider=provider)


def of(request: Request) -> Service:
    """Return the parts that the application of ``request`` uses."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
