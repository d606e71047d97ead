"""Servers that do not come from Python packages: servers of Debian's packages, and servers that environment variables
name.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.embedded import EmbeddedPostgres, EmbeddedRedis, EmbeddedServer

REDIS = Path("/usr/bin/redis-server")
PGBOUNCER = Path("/usr/sbin/pgbouncer")
DOVECOT = Path("/usr/sbin/dovecot")
NGINX = Path("/usr/sbin/nginx")
PROMTOOL = Path("/usr/bin/promtool")
URLS = ("DATABASE_URL", "REDIS_URL")


def postgres_binaries() -> list[Path]:
    """Return the folders of all installed versions of PostgreSQL, the newest version last."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return sorted(found, key=lambda path: int(path.parts[4]))


def missing(servers: str) -> str:
    """Return what must be done before the tests can run with ``servers``, or an empty text."""
    is_there = {
        "pgbouncer": PGBOUNCER.exists(),
        "dovecot-imapd": DOVECOT.exists(),
        "nginx-light": NGINX.exists(),
        "prometheus": PROMTOOL.exists(),
    }
    if servers == "debian":
        is_there |= {"postgresql": bool(postgres_binaries()), "redis-server": REDIS.exists()}
    absent = [package for package, found in is_there.items() if not found]
    unset = [name for name in URLS if servers == "given" and not os.environ.get(name)]
    advice = [f"apt-get install {' '.join(absent)}"] if absent else []
    return "; ".join(advice + [f"set {name}" for name in unset])


class DebianPostgres(EmbeddedPostgres):
    """PostgreSQL of Debian's package `postgresql`, with a cluster of its own."""

    def _find_binary(self) -> Path:
        return postgres_binaries()[-1]


class DebianRedis(EmbeddedRedis):
    """Redis of Debian's package `redis-server`, without Debian's service and configuration."""

    def _find_binary(self) -> Path:
        return REDIS


@dataclass(frozen=True)
class Given:
    """A server that was not started by the tests. The tests remove what they create in it."""

    url: str


@contextmanager
def running(servers: str, folder: Path) -> Iterator[tuple[EmbeddedServer | Given, EmbeddedServer | Given]]:
    """Yield PostgreSQL and Redis when they can be used. Raises RuntimeError, with what to install, if something is
    missing.
    """
    if advice := missing(servers):
        raise RuntimeError(f"--servers={servers}: {advice}")
    if servers == "given":
        postgres, redis_server = (Given(os.environ[name]) for name in URLS)
        yield postgres, redis_server
        return
    with ExitStack() as stack:
        started = DebianPostgres(folder), DebianRedis(folder)
        for server in started:
            stack.callback(server.stop)
            server.start()
        yield started
