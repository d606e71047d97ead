"""Starts real PostgreSQL and Redis from pip-installed binaries, for ``rota up`` on a bare machine and for the tests.

Each server is a child of this process and keeps its data in a folder. Do not use this package in production.

Three rules decide how this package works. *One starter per folder:* a lock is held while a server runs. *No leftovers:*
a starter that was killed leaves its servers running. So the command line of each server process contains a mark, which
is made from the data folder. The next start finds these processes by the mark, and ends them first. *Not as root:*
PostgreSQL refuses to run as root. If root starts the servers, both run as the account that owns their data. For new
data, that account is ``pgserver``, which is created if it is missing. If that account cannot reach a folder,
``/var/lib/rota`` is used instead.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from core.embedded.places import temporary_folder
from core.embedded.postgres import POSTGRES_PORT, EmbeddedPostgres
from core.embedded.redis import EmbeddedRedis
from core.embedded.server import EmbeddedServer

__all__ = [
    "POSTGRES_PORT",
    "EmbeddedPostgres",
    "EmbeddedRedis",
    "EmbeddedServer",
    "embedded_servers",
    "temporary_folder",
]


@contextmanager
def embedded_servers(folder: Path) -> Iterator[tuple[EmbeddedPostgres, EmbeddedRedis]]:
    """Run both servers with their data in ``folder``. They are always stopped at the end.

    Raises EmbeddedServerError as ``EmbeddedServer.start`` does.
    """
    postgres, redis_server = EmbeddedPostgres(folder), EmbeddedRedis(folder)
    with ExitStack() as stack:
        for server in (postgres, redis_server):
            stack.callback(server.stop)
            server.start()
        yield postgres, redis_server
