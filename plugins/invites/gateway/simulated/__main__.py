"""``python -m plugins.invites.gateway.simulated``: serves until it is ended, and prints its address first."""

import signal
import threading

import click

from plugins.invites.gateway.simulated.server import PAGE, SimulatedGateway
from plugins.invites.gateway.simulated.teams import Teams


@click.command()
@click.option("--port", default=0, help="The port; 0 takes a free one.")
@click.option("--path", default=":memory:", help="The SQLite file of the members.")
@click.option("--token", default=None, help="The token that requests must have.")
@click.option("--page", default=PAGE, help="How many members one page of a listing has.")
@click.option("--resends", is_flag=True, help="Send people who are invited already another e-mail.")
@click.option("--certificate", default=None, help="A file with a certificate and its key; then TLS is spoken.")
def serve(port: int, path: str, token: str | None, page: int, resends: bool, certificate: str | None) -> None:
    """Serve a simulated gateway on this machine."""
    with SimulatedGateway(port, Teams(path, resends), token, page) as server:
        if certificate is not None:
            server.encrypt(certificate)
        ends = threading.Event()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: ends.set())
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        scheme = "http" if certificate is None else "https"
        click.echo(f"{scheme}://127.0.0.1:{server.server_address[1]}")
        ends.wait()
        server.is_closing.set()
        server.shutdown()


if __name__ == "__main__":
    serve()
