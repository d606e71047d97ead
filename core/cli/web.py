"""``rota web``: serves the HTTP API."""

from urllib.request import urlopen

import click

from core.cli import environment
from core.cli.output import say
from core.errors import RotaError
from core.observability import logs
from core.operations import web_address
from core.plugins import loading
from core.settings import Settings

#: The time-out for the answer of the running service.
CHECK_SECONDS = 5


@click.command()
@click.option("--check", "is_check", is_flag=True, help="Ask the running service whether it answers; for containers.")
def web(is_check: bool) -> None:
    """Serve the HTTP API, until Ctrl-C or SIGTERM.

    ROTA_WEB_HOST and ROTA_WEB_PORT set the address, by default 127.0.0.1 and 9190. ROTA_WEB_PREFIX is the path below
    which a proxy publishes the API. GET /health returns the health of the whole service; GET /health/live returns only
    the health of this process. The command needs the packages of the extra `rota[web]`.

    \b
      rota web
      curl http://127.0.0.1:9190/health
    """
    configured = environment.configured()
    if not configured.web_port:
        raise RotaError("ROTA_WEB_PORT is 0, which means no HTTP service; set it to a port")
    if is_check:
        check(configured)
        return
    logs.configure(configured.log_format, configured.log_level)
    try:
        from core.web import server
    except ModuleNotFoundError as error:
        raise RotaError(f"the package {error.name} is not installed; pip install 'rota[web]'") from None
    server.serve(configured, loading.current())


def check(configured: Settings) -> None:
    """Raise RotaError unless the service that is running on this host answers."""
    address = f"{web_address.address(configured)}/health/live"
    try:
        with urlopen(address, timeout=CHECK_SECONDS):
            say(f"{address} answers")
    except OSError as error:
        raise RotaError(f"{address} does not answer: {error}") from None
