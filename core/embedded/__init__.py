"""Starts real PostgreSQL and Redis from pip-installed binaries, for ``rota up`` on a bare machine and for the tests.

Each server is a direct child of this process and keeps its data in a folder; nothing here is meant for production.

Three things decide how it is done. *One folder, one starter:* a lock is held while a server runs. *No leftovers:*
a starter that was killed leaves its servers running, so each server carries a mark, made from its data folder, in
the command line of all its processes; the next start finds them by it and ends them first. *Not as root:*
PostgreSQL refuses to run as root, and a Redis without a password should not; as root both run as the account that
owns their data, at first ``pgserver``, which is created if the machine has none. What that cannot reach lies in
``/var/lib/rota`` instead.
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
    """Both servers, running, with their data in ``folder``; stopped at the end, whatever happens.

    Raises EmbeddedServerError as ``EmbeddedServer.start`` does.
    """
    postgres, redis_server = EmbeddedPostgres(folder), EmbeddedRedis(folder)
    with ExitStack() as stack:
        for server in (postgres, redis_server):
            stack.callback(server.stop)
            server.start()
        yield postgres, redis_server
