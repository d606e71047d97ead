"""The server of ``rota web``: uvicorn, which ends within a second when it is asked to."""

import os
import threading
from contextlib import suppress
from importlib.util import find_spec
from types import FrameType

import uvicorn
from sqlalchemy.exc import DBAPIError

from core.errors import RotaError
from core.jobs.registry import Registry
from core.ledger import tokens
from core.observability import logs
from core.observability.events import WebServing, WebStopping, emit
from core.operations import web_address
from core.settings import Settings
from core.web import app, listeners, service
from core.web.service import Service

#: How long requests in progress may take to end at a stop.
GRACE_SECONDS = 0.5
#: The process ends this long after the signal, even if a request hangs.
STOP_SECONDS = 0.9
#: How long the last lines of the log may take to be written at the end of the process.
FLUSH_SECONDS = 0.1
#: How long an idle connection is kept.
KEEP_ALIVE_SECONDS = 30
#: The most connections, including idle ones.
MOST_CONNECTIONS = 500

OPEN = "ROTA_WEB_HOST={host} can be reached from other machines, but nobody could log in: there is no token"
ADVICE = (
    "make one with `rota tokens create NAME --role operator`, or set ROTA_WEB_TOKEN or ROTA_OIDC_ISSUER; "
    "or listen on 127.0.0.1"
)


class Server(uvicorn.Server):
    """Ends within a second of a signal, with status 0, even if a request waits for a server that hangs."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop. uvicorn's own handler would end the process by the signal after the stop."""
        if self._stopping.is_set():
            self.force_exit = True
            return
        self._stopping.set()
        self.should_exit = True
        last_resort = threading.Timer(STOP_SECONDS, end_now)
        last_resort.daemon = True
        last_resort.start()


def end_now() -> None:
    """End the process, even if a thread waits for an answer that does not come."""
    logs.flush(FLUSH_SECONDS)
    os._exit(0)


def serve(configured: Settings, registry: Registry) -> None:
    """Serve HTTP until a signal. Raises RotaError if the address cannot be used, a package is missing, or nobody could
    log in.
    """
    if configured.oidc_issuer:
        require_oidc()
    with service.opened(configured, registry) as parts:
        with listeners.opened(configured) as listener:
            refuse_open(configured, parts)
            emit(WebServing(web_address.address(configured)))
            Server(config(app.surrounded(app.make(parts), parts)), parts.stopping).run(sockets=[listener])
        emit(WebStopping())
        end_now()  # at once: a thread or a connection that hangs does not delay the end


def require_oidc() -> None:
    """Raise RotaError if the packages that OpenID Connect needs are not installed."""
    for package in ("authlib", "httpx2", "joserfc"):
        if find_spec(package) is None:
            said = f"ROTA_OIDC_ISSUER is set, and the package {package} is not installed"
            raise RotaError(f"{said}; pip install 'rota[oidc]'")


def config(application: object) -> uvicorn.Config:
    """Return the settings of uvicorn.

    uvicorn neither logs requests nor reads the headers of a proxy, since Rota's own code does both.
    """
    return uvicorn.Config(
        application,  # type: ignore[arg-type]  # it is an ASGI application
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,  # type: ignore[arg-type]  # fractions of a second work
        limit_concurrency=MOST_CONNECTIONS,
    )


def refuse_open(configured: Settings, parts: Service) -> None:
    """Raise RotaError if other machines can reach the service and no caller could log in.

    While PostgreSQL is away, the tokens are unknown, and nothing is raised.
    """
    if web_address.is_local(configured) or configured.web_token is not None:
        return
    if configured.web_user_header or configured.oidc_issuer:
        return
    with suppress(DBAPIError), parts.engine.connect() as connection:
        if not tokens.is_any_valid(connection):
            raise RotaError(f"{OPEN.format(host=configured.web_host)}; {ADVICE}")
