"""S3 servers of Python packages, each a process of its own: moto's server, and rclone before a folder."""

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
#: rclone refuses shorter ones.
ACCESS_KEY, SECRET_KEY = "tests-access-key", "tests-secret-key"


@dataclass(frozen=True)
class ObjectStore:
    """A running server that has the bucket ``mail``."""

    endpoint: str

    @property
    def environ(self) -> dict[str, str]:
        """The variables by which a client finds it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def moto_server() -> Iterator[ObjectStore]:
    """moto's server, which keeps everything in memory."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port) as server:
        request = urllib.request.Request(f"{server.endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        yield server


@contextmanager
def rclone_server(folder: Path, *options: str) -> Iterator[ObjectStore]:
    """``rclone serve s3`` before ``folder``, whose subfolders are the buckets."""
    (folder / BUCKET).mkdir(exist_ok=True)
    port = free_port()
    command = [str(Path(sysconfig.get_path("scripts")) / "rclone"), "serve", "s3", str(folder), *options]
    command += ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", os.devnull]
    with running(command, port) as server:
        yield server


@contextmanager
def running(command: list[str], port: int) -> Iterator[ObjectStore]:
    """The server of ``command``, once it listens at ``port``."""
    with TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            eventually(lambda: listens(port, server, log))
            yield ObjectStore(f"http://127.0.0.1:{port}")
        finally:
            server.kill()


def listens(port: int, server: subprocess.Popen[bytes], log: IO[bytes]) -> bool:
    """Whether somebody listens there; raises RuntimeError, with what the server said, if it has ended instead."""
    if server.poll() is not None:
        log.seek(0)
        raise RuntimeError(f"{server.args}: {log.read().decode()}")
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
