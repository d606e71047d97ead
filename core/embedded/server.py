"""Starts and ends a server, with the parts that PostgreSQL and Redis have in common."""

import importlib.util
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from core.embedded import places
from core.embedded.accounts import Account, advice, pgserver_account
from core.embedded.folder_lock import FolderLock
from core.embedded.processes import marked_processes, send, wait_until
from core.errors import EmbeddedServerError

#: The longest start, in seconds. Recovery after a crash replays the log since the last checkpoint, which can take a
#: while on a slow disk.
READY_WITHIN_SECONDS = 60.0
LOG_LINES_SHOWN = 20


class EmbeddedServer:
    """The common part of both servers: the lock, the account, the child process, its readiness and its end."""

    #: The signals that ask the server to end, with the seconds to wait after each signal. After the last, the server is
    #: killed.
    farewells: tuple[tuple[signal.Signals, float], ...] = ()
    name: str
    program: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.data = places.of_data(self.folder, self.name)
        self.log_file = self.folder / f"{self.name}.log"
        self._lock = FolderLock(self.folder / f"{self.name}.lock")
        self._account: Account | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and return when it answers, after at most 60 s. Do nothing if it is running.

        Data of an earlier run is kept. Servers that a killed starter left are ended first. Raises EmbeddedServerError
        if another process serves this folder, if a package is missing, or if the server does not start. The message
        then contains the end of the server's log.
        """
        if self.is_running():
            return
        self._make_folder()
        self._account = self._choose_account()
        self._lock.take(self.data)
        try:
            self._start_locked()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop the server in less than 5 s, by SIGKILL if necessary. Do nothing if it was not started."""
        if not self._lock.held:
            return
        try:
            self._end_in_order()
        finally:
            self.kill()

    def kill(self) -> None:
        """End all processes of the server with SIGKILL, as a power cut would. The next start recovers the data."""
        if not self._lock.held:
            return
        self._kill_all()
        self._clear_leftovers()
        self._lock.release()

    @property
    def pid(self) -> int | None:
        """The id of the process that this object started; None if it started none."""
        return self._child.pid if self._child else None

    def is_running(self) -> bool:
        """Return whether the server that this object started is alive."""
        return self._child is not None and self._child.poll() is None

    def _start_locked(self) -> None:
        binary = self._find_binary()
        if self._account:
            binary = self._reachable(binary, self._account)
            places.require(self.data, self._account)
        self._prepare(binary)
        self._end_in_order()
        self._kill_all()
        self._clear_leftovers()
        self._before_launch()
        self._child = self._launch(self._command(binary), self._input())
        self._wait_until_ready()

    def _find_binary(self) -> Path:
        raise NotImplementedError

    def _prepare(self, binary: Path) -> None:
        raise NotImplementedError

    def _before_launch(self) -> None:
        """Prepare resources that a leftover server could have been using until now."""

    def _command(self, binary: Path) -> list[str]:
        raise NotImplementedError

    def _input(self) -> bytes:
        """Return the bytes for the server's standard input."""
        return b""

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _clear_leftovers(self) -> None:
        """Remove files of a killed server that would prevent the next start or mislead a reader."""

    def _make_folder(self) -> None:
        try:
            places.make(self.folder)
            places.make(self.data.parent)
        except OSError as error:
            raise EmbeddedServerError(f"cannot make the folder {self.data.parent}: {error}") from error

    def _reachable(self, binary: Path, account: Account) -> Path:
        try:
            return places.of_program(binary, *self._needed_by(binary), account)
        except OSError as error:
            raise EmbeddedServerError(f"cannot copy {binary}: {error}{advice(account)}") from error

    def _needed_by(self, binary: Path) -> tuple[Path, Sequence[str]]:
        """Return a folder, and the parts of it that the program needs."""
        return binary.parent, [binary.name]

    def _choose_account(self) -> Account | None:
        """Return the account under which the server runs, or None for this process's own account."""
        owner = self.data.stat() if self.data.exists() else None
        if os.geteuid() == 0:
            return Account(owner.st_uid, owner.st_gid) if owner and owner.st_uid else pgserver_account()
        if owner and owner.st_uid != os.geteuid():
            raise EmbeddedServerError(
                f"{self.data} belongs to user {owner.st_uid}; start as that user or as root, or use another folder"
            )
        return None

    def _own_folder(self, path: Path) -> None:
        """Make ``path`` a folder that only the account can read. Change the owner of files that belong to root."""
        path.mkdir(mode=0o700, exist_ok=True)
        if self._account and path.stat().st_uid != self._account.uid:
            for entry in (path, *path.rglob("*")):
                os.chown(entry, self._account.uid, self._account.gid, follow_symlinks=False)

    @property
    def _mark(self) -> str:
        """The mark in the command line of all processes of this server. It stays the same if the folder is moved."""
        found = self.data.stat()
        # The mark has a fixed width, so that no mark is a prefix of another mark.
        return f"rota-{found.st_dev:016x}-{found.st_ino:016x}"

    def _launch(self, command: Sequence[str], given: bytes = b"") -> subprocess.Popen[bytes]:
        account = self._account
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        with self.log_file.open("ab") as output, tempfile.TemporaryFile() as source:
            source.write(given)
            source.seek(0)
            try:
                return subprocess.Popen(
                    command,
                    stdin=source,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=environment,
                    # Ctrl-C must reach only this process, which ends the servers after their clients.
                    start_new_session=True,
                    user=account.uid if account else None,
                    group=account.gid if account else None,
                    extra_groups=[] if account else None,
                )
            except OSError as error:
                raise EmbeddedServerError(f"cannot run {command[0]}: {error}{advice(account)}") from error

    def _wait_until_ready(self) -> None:
        in_time = wait_until(lambda: not self.is_running() or self._is_ready(), READY_WITHIN_SECONDS)
        if not self.is_running():
            raise EmbeddedServerError(f"{self.name} ended while starting in {self.data}{self._end_of_log()}")
        if not in_time:
            raise EmbeddedServerError(
                f"{self.name} in {self.data} gave no answer within {READY_WITHIN_SECONDS:.0f} s{self._end_of_log()}"
            )

    def _end_of_log(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join([f"; the end of {self.log_file}:", *lines])

    def _end_in_order(self) -> None:
        for farewell, seconds in self.farewells:
            leaders = self._leaders()
            for pid in leaders:
                send(pid, farewell)
            if not leaders or wait_until(self._is_gone, seconds):
                return

    def _kill_all(self) -> None:
        """Kill processes until none is left, since a server may fork between listing and killing."""

        def kill_round() -> bool:
            for pid in [*self._leaders(), *self._processes()]:
                send(pid, signal.SIGKILL)
            return self._is_gone()

        if not wait_until(kill_round, READY_WITHIN_SECONDS):
            raise EmbeddedServerError(f"cannot end the processes {sorted(self._processes())} that serve {self.data}")

    def _processes(self) -> dict[int, int]:
        return marked_processes(self.program, self._mark) if self.data.exists() else {}

    def _leaders(self) -> list[int]:
        """Return the server's main process.

        If the main process is gone, return the processes whose parent is not a process of the server.
        """
        if self._child is not None and self._child.poll() is None:
            return [self._child.pid]
        found = self._processes()
        return [pid for pid, parent in found.items() if parent not in found]

    def _is_gone(self) -> bool:
        return not self.is_running() and not self._processes()


def binary_of(package: str, path: str) -> Path:
    """Return a program in a pip package. The package is not imported, since its import has side effects."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    binary = Path(folders[0]) / path if folders else None
    if binary is None or not binary.exists():
        missing = binary or f"the package {package}"
        raise EmbeddedServerError(
            f"{missing} is not installed; pip install 'rota[embedded]', or set DATABASE_URL and REDIS_URL"
        )
    return binary


def end_of(child: subprocess.Popen[bytes]) -> int:
    """Wait for a short-lived child. Kill it if the wait is interrupted."""
    try:
        return child.wait(READY_WITHIN_SECONDS)
    except BaseException:
        child.kill()
        child.wait()
        raise
