"""``rota web``: serves the HTTP API."""

import click

from core.cli import environment
from core.errors import RotaError
from core.observability import logs
from core.plugins import loading


@click.command()
def web() -> None:
    """Serve the HTTP API, until Ctrl-C or SIGTERM.

    ROTA_WEB_HOST and ROTA_WEB_PORT set the address, by default 127.0.0.1 and 9190; ROTA_WEB_PREFIX is the path below
    which a proxy publishes it. GET /health tells the health of the whole service, GET /health/live that of this
    process. Needs the packages of the extra `rota[web]`.

    \b
      rota web
      curl http://127.0.0.1:9190/health
    """
    configured = environment.configured()
    if not configured.web_port:
        raise RotaError("ROTA_WEB_PORT is 0, which means no HTTP service; set it to a port")
    logs.configure(configured.log_format, configured.log_level)
    try:
        from core.web import server
    except ModuleNotFoundError as error:
        raise RotaError(f"the package {error.name} is not installed; pip install 'rota[web]'") from None
    server.serve(configured, loading.current())
