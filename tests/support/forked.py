"""Commands of Rota that are forked from a process which has imported their modules; see ``preloader.py``."""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

PRELOADER = Path(__file__).with_name("preloader.py")
#: The folder of the scripts that can be forked, and their names.
BIN = Path(sys.executable).parent
SCRIPTS = {"dramatiq", "periodiq", "rota"}
#: Held while a command is asked for, so that two threads do not start two preloaders.
_asking = threading.Lock()


def can_be_forked(program: str) -> bool:
    """Whether the preloader has imported what this program imports."""
    return Path(program).parent == BIN and Path(program).name in SCRIPTS


class Forked:
    """A running command, with the part of ``subprocess.Popen`` that tests use. It leads a session of its own."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        environ: Mapping[str, str],
        cwd: Path,
        output: IO[bytes],
        source: IO[bytes] | None = None,
    ) -> None:
        self.args = list(words)
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._answers, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = json.dumps({"words": self.args, "environ": dict(environ), "cwd": str(cwd)}).encode()
        with answering, open(os.devnull, "rb") as nothing, _asking:
            files = [answering, source or nothing, output, output]
            socket.send_fds(_preloader(), [asked], [file.fileno() for file in files])
        self.pid = int(self._answers.recv(64))

    def poll(self) -> int | None:
        """Return the exit status, or None while the command is running."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit status. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            answered, *_ = select.select([self._answers], [], [], timeout)
            with self._lock:
                if self.returncode is None:
                    self._read_status(timeout, answered)
        return self.returncode

    def _read_status(self, timeout: float | None, answered: list[Any]) -> None:
        if not answered:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.returncode = os.waitstatus_to_exitcode(int(self._answers.recv(64)))
        self._answers.close()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


@cache
def _preloader() -> socket.socket:
    """Start the preloader of this process; it ends with this process."""
    requests, served = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, str(PRELOADER), str(served.fileno())]
    with served:
        process = subprocess.Popen(command, pass_fds=[served.fileno()], start_new_session=True)
    atexit.register(lambda: (requests.close(), process.wait(10)))
    return requests
