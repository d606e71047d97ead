"""The application: its routes, and the layers around them."""

from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp

from core.web import (
    api,
    health,
    legacy,
    legacy_cleanup,
    login,
    metrics,
    oidc_login,
    openapi,
    plugin_routes,
    problems,
)
from core.web.envelope import Envelope
from core.web.live import stream
from core.web.pages import routes as pages
from core.web.proxies import Proxies
from core.web.service import Service

#: FastAPI's own telemetry contains messages of exceptions, which may contain secrets.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


def make(service: Service | None) -> FastAPI:
    """Return the application, whose routes use ``service``. Without a service, only the OpenAPI document can be made.

    FastAPI's pages of documentation are left out, since they load scripts from other servers.
    """
    app = FastAPI(
        title="Rota",
        version=version("rota"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
    )
    app.state.service, app.state.plugin_pages = service, []
    problems.install(app)
    app.include_router(health.router)
    app.include_router(login.router)
    app.include_router(oidc_login.router)
    app.include_router(openapi.router)
    app.include_router(metrics.router)
    app.include_router(stream.router)
    app.include_router(api.router)
    app.include_router(pages.router)
    if service is not None:
        app.state.calls = service.calls
        plugin_routes.include(app, service.registry.routes(), is_strict=service.configured.strict_plugins)
    if service is None or service.configured.web_legacy:
        app.include_router(legacy.router)
        app.include_router(legacy_cleanup.router)
    app.openapi = partial(openapi.document, app)  # type: ignore[method-assign]  # FastAPI's own way to change it
    return app


def surrounded(app: ASGIApp, service: Service) -> ASGIApp:
    """Return the application within its two layers: ``Proxies`` outside, and ``Envelope`` inside."""
    return Proxies(Envelope(app, service.configured.web_prefix), service.configured)
