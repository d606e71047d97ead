"""``rota web``: serves the HTTP API."""

import socket
from http.client import HTTPConnection, HTTPException

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
OK = 200


@click.command()
@click.option("--check", "is_check", is_flag=True, help="Ask the running service whether it answers; for containers.")
def web(is_check: bool) -> None:
    """Serve the HTTP API, until Ctrl-C or SIGTERM.

    ROTA_WEB_HOST and ROTA_WEB_PORT set the address, by default 127.0.0.1 and 9190; with ROTA_WEB_SOCKET, it is a Unix
    socket instead. ROTA_WEB_PREFIX is the path below
    which a proxy publishes the API. GET /health returns the health of the whole service; GET /health/live returns only
    the health of this process. The command needs the packages of the extra `rota[web]`.

    \b
      rota web
      curl http://127.0.0.1:9190/health
    """
    configured = environment.configured()
    if not configured.web_port and configured.web_socket is None:
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
    address = web_address.address(configured)
    connection = Connection(configured)
    try:
        connection.request("GET", f"{configured.web_prefix}/health/live")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        raise RotaError(f"{address} does not answer: {error}") from None
    finally:
        connection.close()
    if status != OK:
        raise RotaError(f"{address} answers with the status {status}; is it `rota web`?")
    say(f"{address} answers")


class Connection(HTTPConnection):
    """A connection to the running service, on its port or its Unix socket."""

    def __init__(self, configured: Settings) -> None:
        super().__init__(web_address.host(configured), configured.web_port or None, timeout=CHECK_SECONDS)
        self._path = configured.web_socket

    def connect(self) -> None:
        """Connect. Raises OSError."""
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(CHECK_SECONDS)
        self.sock.connect(str(self._path))
