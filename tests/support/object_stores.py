"""S3 servers from Python packages, each in a process of its own: moto's server, and rclone with a folder."""

import os
import socket
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from tests.support.eventually import eventually

BUCKET = "mail"
#: Credentials that are long enough for rclone.
ACCESS_KEY, SECRET_KEY = "tests-access-key", "tests-secret-key"


@dataclass(frozen=True)
class ObjectStore:
    """A running server that has the bucket ``mail``."""

    endpoint: str

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables for a client of the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def moto_server() -> Iterator[ObjectStore]:
    """Yield moto's server, which keeps all objects in memory."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port) as server:
        request = urllib.request.Request(f"{server.endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        yield server


@contextmanager
def rclone_server(folder: Path, *options: str) -> Iterator[ObjectStore]:
    """Yield ``rclone serve s3`` for ``folder``, whose subfolders are the buckets."""
    (folder / BUCKET).mkdir(exist_ok=True)
    port = free_port()
    command = [str(Path(sysconfig.get_path("scripts")) / "rclone"), "serve", "s3", str(folder), *options]
    command += ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", os.devnull]
    with running(command, port) as server:
        yield server


@contextmanager
def running(command: list[str], port: int) -> Iterator[ObjectStore]:
    """Yield the server of ``command`` when it listens on ``port``."""
    with TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            eventually(lambda: listens(port, server, log))
            yield ObjectStore(f"http://127.0.0.1:{port}")
        finally:
            server.kill()


def listens(port: int, server: subprocess.Popen[bytes], log: IO[bytes]) -> bool:
    """Return whether the server listens. Raises RuntimeError, with its log, if it has ended."""
    if server.poll() is not None:
        log.seek(0)
        raise RuntimeError(f"{server.args}: {log.read().decode()}")
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a port on which no server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
