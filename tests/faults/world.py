"""The processes under test: servers, proxies, workers and schedulers, and the code that restarts dead processes."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from sqlalchemy import Connection
from sqlalchemy.engine import make_url

from core import database
from core.embedded import POSTGRES_PORT, EmbeddedPostgres, EmbeddedRedis, temporary_folder
from core.plugins import loading
from core.schema import upgrade
from core.testing import create_database, drop_database
from tests.faults import switches, workload
from tests.faults.history import ProcessEvent
from tests.faults.plant import PLANT
from tests.faults.planted import planted
from tests.faults.proxy import Address, Loop, Proxy
from tests.faults.traces import QUEUE
from tests.support.eventually import eventually
from tests.support.fleet import BOOT_SECONDS, Fleet, is_of_group, pid_of

WORKERS, SCHEDULERS, THREADS = 3, 2, 6
#: The time after which the supervisor restarts a dead process, in seconds.
RESTART_SECONDS = 0.5
LOOK_SECONDS = 0.1
#: Enough room for a cluster with its write-ahead log, but so little that a fault fills it in moments.
DISK_BYTES = 512 * 2**20

ENTRY = """\
from tests.faults.workload import Workload as plugin
"""


def now() -> datetime:
    """Return the time by this machine's clock, which PostgreSQL also uses."""
    return datetime.now(UTC)


@dataclass
class Servers:
    """PostgreSQL, on a small file system of its own if this can be mounted, and Redis."""

    folder: Path
    is_small: bool = False
    postgres: EmbeddedPostgres = field(init=False)
    redis: EmbeddedRedis = field(init=False)

    def __post_init__(self) -> None:
        disk = self.folder / "disk"
        disk.mkdir()
        self.is_small = mount_small(disk)
        # The checker orders effects by the commit times of their transactions.
        self.postgres = EmbeddedPostgres(
            disk / "servers", settings={"track_commit_timestamp": "on", "max_wal_size": "96MB"}
        )
        self.redis = EmbeddedRedis(self.folder / "servers")

    def start(self) -> None:
        """Start the servers that are not running."""
        self.postgres.start()
        self.redis.start()

    def stop(self) -> None:
        """Stop both servers, and unmount the file system."""
        self.redis.stop()
        self.postgres.stop()
        if self.is_small:
            subprocess.run(["umount", "--lazy", str(self.folder / "disk")], check=False)

    def socket(self) -> Address:
        """Return the path of PostgreSQL's socket."""
        folder = make_url(self.postgres.url).query["host"]
        return f"{folder}/.s.PGSQL.{POSTGRES_PORT}"

    def redis_address(self) -> Address:
        """Return the host and the port of Redis."""
        url = make_url(self.redis.url)
        assert url.host is not None
        assert url.port is not None
        return url.host, url.port


def mount_small(folder: Path) -> bool:
    """Mount a small file system, if this user and this machine allow it. Return whether it was mounted."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0755", "tmpfs", str(folder)]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


@contextmanager
def servers() -> Iterator[Servers]:
    """Yield servers in a temporary folder, which is removed afterwards."""
    with temporary_folder("rota-faults-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs under an account of its own
        started = Servers(Path(folder))
        try:
            started.start()
            yield started
        finally:
            started.stop()


class FaultFleet(Fleet):
    """A fleet whose processes have the workload of this suite."""

    tables = workload.TABLES

    def install(self) -> None:
        info = self.folder / "site" / "faults-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faults\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[rota.plugins]\nfaults = faults_plugin:plugin\n")
        (self.folder / "site" / "faults_plugin.py").write_text(ENTRY)


@dataclass
class Member:
    """A worker or a scheduler: all processes with its name, one after the other."""

    name: str
    command: tuple[str, ...]
    postgres: Proxy
    redis: Proxy
    process: subprocess.Popen[bytes] | None = None
    ended_at: float = 0.0

    @property
    def is_worker(self) -> bool:
        return self.name.startswith("worker")

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def pids(self) -> frozenset[int]:
        """Return the pids of its process and of all descendants."""
        if self.process is None:
            return frozenset()
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.process.pid).children(recursive=True)
            return frozenset({self.process.pid, *(child.pid for child in below)})
        return frozenset()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process and to all descendants."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


@dataclass
class World:
    """The processes and the database of one round."""

    folder: Path
    servers: Servers
    settings: Mapping[str, str]
    plant: str | None = None
    members: list[Member] = field(default_factory=list)
    events: list[ProcessEvent] = field(default_factory=list)
    loop: Loop = field(default_factory=Loop)
    #: Set when the round is given up.
    given_up: threading.Event = field(default_factory=threading.Event)
    _ending: threading.Event = field(default_factory=threading.Event)
    _supervisor: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.database = f"round_{os.getpid()}_{time.monotonic_ns()}"
        self.url = create_database(self.servers.postgres.url, self.database)
        self.switches = self.folder / "switches"
        self.switches.mkdir()
        migrated = database.connect(self.url)
        list(upgrade.upgrade(migrated, loading.current()))
        database.dispose(migrated)
        self.fleet = FaultFleet(self.folder, self.url, self.servers.redis.url)
        self.fleet.redis.flushall()
        if self.plant:
            with self.fleet.engine.begin() as connection:
                for plant in planted(self.plant):
                    connection.exec_driver_sql(plant.schema)

    @property
    def workers(self) -> list[Member]:
        return [member for member in self.members if member.is_worker]

    @property
    def schedulers(self) -> list[Member]:
        return [member for member in self.members if not member.is_worker]

    @property
    def is_local(self) -> bool:
        """Whether the world has neither Redis nor schedulers."""
        return self.settings.get("SCHEDULER_MODE") == "local"

    def commands(self) -> dict[str, tuple[str, ...]]:
        """Return the command of each member."""
        size = ("--threads", str(THREADS), "--queues", QUEUE)
        if self.is_local:
            return {f"worker-{number}": ("python", "-m", "core.worker.local", *size) for number in range(WORKERS)}
        worker = ("dramatiq", "core.main", "--processes", "1", *size, workload.FAST_QUEUE)
        schedulers = {f"scheduler-{number}": ("periodiq", "core.main") for number in range(SCHEDULERS)}
        return {f"worker-{number}": worker for number in range(WORKERS)} | schedulers

    def populate(self) -> None:
        """Start all members, and wait until all are alive."""
        for name, command in self.commands().items():
            behind = (self.servers.socket, self.servers.redis_address)
            proxies = [Proxy(self.loop, address).start() for address in behind]
            self.members.append(Member(name, command, *proxies))
            self.start(self.members[-1])
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._supervisor.start()
        eventually(lambda: all(self.is_alive(member) for member in self.members), within=BOOT_SECONDS + 30)

    def is_alive(self, member: Member) -> bool:
        """Return whether the ledger has the member as a live process."""
        kind = "worker" if member.is_worker else "scheduler"
        group = member.process.pid if member.process else 0
        return any(is_of_group(pid_of(row), group) for row in self.fleet.registered(kind))

    def start(self, member: Member) -> None:
        """Start the next process of a member."""
        url = make_url(self.url)
        through = url.set(host="127.0.0.1", port=member.postgres.port, query={})
        redis = f"redis://:{make_url(self.servers.redis.url).password}@127.0.0.1:{member.redis.port}/0"
        environ = {
            **self.settings,
            "DATABASE_URL": through.render_as_string(hide_password=False),
            "REDIS_URL": "" if self.is_local else redis,
            switches.FOLDER: str(self.switches),
            switches.NAME: member.name,
            **({PLANT: self.plant} if self.plant else {}),
        }
        member.process = self.fleet.start(*member.command, **environ)
        self.note(member.name, member.process.pid, "started")

    def note(self, name: str, pid: int, what: str) -> None:
        """Record the start or the end of a process."""
        self.events.append(ProcessEvent(now(), name, pid, what))

    def _supervise(self) -> None:
        while not self._ending.wait(LOOK_SECONDS):
            for member in self.members:
                if not member.is_running:
                    self._start_again(member)

    def _start_again(self, member: Member) -> None:
        assert member.process is not None
        if not member.ended_at:
            member.ended_at = time.monotonic()
            self.note(member.name, member.process.pid, f"ended with status {member.process.poll()}")
        elif time.monotonic() > member.ended_at + RESTART_SECONDS:
            member.ended_at = 0.0
            self.start(member)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a new connection in autocommit mode that uses no proxy."""
        engine = database.connect(self.url)
        try:
            with database.dedicated(engine) as connection:
                yield connection
        finally:
            database.dispose(engine)

    def heal(self) -> None:
        """End the effects of all faults."""
        for path in self.switches.glob("usurper-*"):
            path.unlink(missing_ok=True)
        for member in self.members:
            switches.clock_file(self.switches, member.name).write_text("0")
            member.postgres.heal()
            member.redis.heal()
            member.signal(signal.SIGCONT)
        self.servers.start()

    def stop_members(self) -> None:
        """Stop restarting processes, and kill all processes."""
        self._ending.set()
        if self._supervisor is not None:
            self._supervisor.join(10)
        for member in self.members:
            member.signal(signal.SIGKILL)

    def end(self) -> None:
        """End all processes, and drop the database."""
        self.stop_members()
        self.fleet.stop()
        for member in self.members:
            member.postgres.stop()
            member.redis.stop()
        self.loop.close()
        with suppress(Exception):  # if the server is gone, so is its database
            drop_database(self.servers.postgres.url, self.database)


@contextmanager
def world(servers: Servers, settings: Mapping[str, str], plant: str | None = None) -> Iterator[World]:
    """Yield the world of a round, and remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="round-", dir=servers.folder))
    made = World(folder, servers, settings, plant)
    try:
        yield made
    finally:
        made.end()
