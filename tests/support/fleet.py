"""Real ``dramatiq core.main`` and ``periodiq core.main`` processes, started, killed and paused by tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, ClassVar

import redis
from dramatiq.message import Message
from sqlalchemy import Engine, text

from core import database
from core.ledger.carrier import OutgoingRun
from core.ledger.processes import LEADER_LOCK, LOCK_SPACE
from core.transport import redis as redis_broker
from core.transport.redis import RedisCarrier, RotaBroker
from tests.support import chaos, forked
from tests.support.eventually import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).parents[2]


#: The time for a start: the machine may be busy, and a periodiq that starts at the end of a minute waits for the next
#: one.
BOOT_SECONDS = 60

LEADER = """
    SELECT activity.application_name FROM pg_stat_activity AS activity JOIN pg_locks AS lock USING (pid)
    JOIN pg_database AS db ON db.oid = lock.database AND db.datname = current_database()
    WHERE lock.locktype = 'advisory' AND lock.granted AND lock.objsubid = 2
      AND lock.classid = CAST(:space AS oid) AND lock.objid = CAST(:lock AS oid)
"""

#: A started command.
Command = subprocess.Popen[bytes] | forked.Forked


@dataclass
class Started:
    """The start of an attempt, as a chaos job has told it."""

    job: str
    run_id: int
    attempt: int
    pid: int


@dataclass
class Fleet:
    """The processes of one test, on one database and one Redis."""

    folder: Path
    postgres_url: str
    redis_url: str
    jobs: str | None = None
    #: The folder of the commands.
    bin: Path = Path(sys.executable).parent
    #: The folder in which the commands are started, from which they can also import.
    cwd: Path = ROOT
    environ: dict[str, str] = field(default_factory=dict)
    processes: list[Command] = field(default_factory=list)
    #: The statements that create the tables of its jobs.
    tables: ClassVar[str] = chaos.EFFECTS

    def __post_init__(self) -> None:
        self.install()
        self.engine: Engine = database.connect(self.postgres_url)
        self.redis = redis.Redis.from_url(self.redis_url, socket_timeout=None, decode_responses=True)
        with self.engine.begin() as connection:
            connection.exec_driver_sql(self.tables)

    def install(self) -> None:
        """Write the plugin that the processes load."""
        chaos.install(self.folder / "site", self.jobs)

    def environment(self) -> dict[str, str]:
        """Return the environment of the processes, without Rota's settings of the shell that started the tests."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("ROTA_")},
            "DATABASE_URL": self.postgres_url,
            "REDIS_URL": self.redis_url,
            "PYTHONPATH": os.pathsep.join([str(self.folder / "site"), str(self.cwd)]),
            "ROTA_METRICS_PORT": "0",
            "PYTHONFAULTHANDLER": "1",
            **self.environ,
        }

    def start(self, *command: str, **environ: str) -> Command:
        """Start a command of the virtual environment in a session of its own. Its output goes to a file.

        The commands of the environment that runs the tests are forked from a process that has imported their modules.
        """
        log = self.folder / f"{Path(command[0]).name}-{len(self.processes)}.log"
        words = [str(self.bin / command[0]), *command[1:]]
        launch = forked.Forked if self.cwd == ROOT and forked.can_be_forked(words[0]) else executed
        with log.open("ab") as output:
            process = launch(words, environ={**self.environment(), **environ}, cwd=self.cwd, output=output)
        self.processes.append(process)
        return process

    def worker(self, *options: str, processes: int = 1, threads: int = 8, **environ: str) -> Command:
        """Start a worker, and wait until all its processes are registered."""
        size = ["--processes", str(processes), "--threads", str(threads)]
        worker = self.start("dramatiq", "core.main", *size, *options, **environ)
        eventually(lambda: len(self.registered("worker", worker)) == processes, within=BOOT_SECONDS)
        return worker

    def scheduler(self, **environ: str) -> Command:
        """Start a scheduler, and wait until it is registered. A scheduler that starts at the end of a minute waits for
        the next one.
        """
        scheduler = self.start("periodiq", "core.main", **environ)
        eventually(lambda: self.registered("scheduler", scheduler), within=BOOT_SECONDS)
        return scheduler

    def together(self, *starts: Callable[[], Command]) -> list[Command]:
        """Start several commands at the same time, and wait for all of them."""
        with ThreadPoolExecutor(len(starts)) as pool:
            return [started.result() for started in [pool.submit(start) for start in starts]]

    def group_of(self, pid: int) -> Command:
        """Return the started command to which the process ``pid`` belongs."""
        return next(process for process in self.processes if process.pid == os.getpgid(pid))

    def kill(self, process: Command) -> None:
        """Send SIGKILL to the process and all its children."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def pause(self, process: Command) -> None:
        """Send SIGSTOP to the process and all its children."""
        os.killpg(process.pid, signal.SIGSTOP)

    def wake(self, process: Command) -> None:
        """Send SIGCONT to the process and all its children."""
        os.killpg(process.pid, signal.SIGCONT)

    def terminate(self, process: Command, *, within: float = PATIENCE_SECONDS) -> int:
        """Stop the process gracefully, and return its exit status."""
        process.terminate()
        return self.wait(process, within=within)

    def wait(self, process: Command, *, within: float) -> int:
        """Wait for the end of a process, and return its exit status. Raises AssertionError if the process does not
        end.
        """
        try:
            return process.wait(within)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)  # each process that is left logs what its threads do
            process.wait(within)
            raise AssertionError(f"still there {within:g} s after SIGTERM:\n{self.logs()}") from None

    def stop(self) -> None:
        """Kill the processes that are left, and close the connections."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.processes:
            process.wait(10)
        self.redis.close()
        database.dispose(self.engine)

    def rows(self, statement: str, **parameters: Any) -> list[Any]:
        """Return the rows of a query."""
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement), parameters).all())

    def registered(self, kind: str, command: Command | None = None) -> list[Any]:
        """Return the live processes of a kind, or only those of one started command."""
        live = "SELECT * FROM rota_processes WHERE kind = :kind AND expires_at > clock_timestamp()"
        return [row for row in self.rows(live, kind=kind) if command is None or is_of_group(pid_of(row), command.pid)]

    def leader(self) -> int:
        """Return the pid of the process whose dispatcher leads."""
        (row,) = eventually(lambda: self.rows(LEADER, space=LOCK_SPACE, lock=LEADER_LOCK), within=10)
        return int(row.application_name.split(":")[1])

    def now(self) -> datetime:
        """Return the time by the database's clock."""
        return self.rows("SELECT clock_timestamp() AS now")[0].now

    def runs(self, job: str) -> list[Any]:
        """Return the runs of a job, the oldest first."""
        return self.rows("SELECT * FROM rota_runs WHERE job = :job ORDER BY id", job=job)

    def effects(self, job: str) -> list[Any]:
        """Return the effects of a job, the oldest first."""
        return self.rows("SELECT * FROM effects WHERE job = :job ORDER BY id", job=job)

    def request(self, job: str, count: int = 1, *, queue: str = "chaos") -> list[int]:
        """Request ``count`` runs of ``job``, as an application without Redis does."""
        insert = """
            INSERT INTO rota_runs (job, queue, exclusive) SELECT :job, :queue, false FROM generate_series(1, :count)
            RETURNING id
        """
        with self.engine.begin() as connection:
            ids = list(connection.execute(text(insert), {"job": job, "queue": queue, "count": count}).scalars())
            connection.exec_driver_sql("NOTIFY rota_due")
        return ids

    def request_in_turn(self, job: str, keys: Sequence[str], *, queue: str = "chaos") -> list[int]:
        """Request a run of ``job`` for each of ``keys``. Runs of one key do not overlap."""
        insert = """
            INSERT INTO rota_runs (job, key, queue) SELECT :job, key, :queue
            FROM unnest(CAST(:keys AS text[])) WITH ORDINALITY AS asked (key, number) ORDER BY number RETURNING id
        """
        with self.engine.begin() as connection:
            asked = {"job": job, "queue": queue, "keys": list(keys)}
            ids = list(connection.execute(text(insert), asked).scalars())
            connection.exec_driver_sql("NOTIFY rota_due")
        return ids

    def suspect(self, run_id: int) -> None:
        """Record that two processes died during a run, so that its next attempt gets a process of its own."""
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE rota_runs SET crashes = 2 WHERE id = :id"), {"id": run_id})

    def next_start(self, *, within: float = PATIENCE_SECONDS) -> Started:
        """Return the next start that a chaos job tells."""
        told = self.redis.blpop([chaos.STARTED], timeout=within)
        assert told is not None, f"no job started within {within} s"
        job, run_id, attempt, pid = told[1].split()
        return Started(job, int(run_id), int(attempt), int(pid))

    def next_starts(self, count: int, *, within: float = PATIENCE_SECONDS) -> list[Started]:
        """Return the next starts that chaos jobs tell."""
        return [self.next_start(within=within) for _ in range(count)]

    def go_on(self, run_id: int, *, attempts: int = 10) -> None:
        """Let a waiting run go on, in up to ``attempts`` attempts."""
        self.redis.rpush(f"{chaos.GO_ON}{run_id}", *["go"] * attempts)

    def send_fast(self, job: str, **args: Any) -> None:
        """Send a message of the fast lane."""
        broker = RotaBroker(redis_broker.connect(self.redis_url))
        broker.enqueue(Message(queue_name="chaos-fast", actor_name=job, args=(), kwargs=args, options={}))
        broker.close()

    def carry(self, job: str, run_ids: list[int]) -> None:
        """Send a message for each of these runs, even if it has one."""
        broker = RotaBroker(redis_broker.connect(self.redis_url))
        RedisCarrier(broker.redis_queues).send([OutgoingRun(run_id, job, "chaos") for run_id in run_ids])
        broker.close()

    def fetched(self, queue: str) -> int:
        """Return how many messages of a queue workers have fetched and not acknowledged."""
        return sum(self.redis.scard(key) for key in self.redis.keys(f"dramatiq:__acks__.*.{queue}"))

    def logs(self) -> str:
        """Return all output of the processes."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))


def executed(words: Sequence[str], *, environ: dict[str, str], cwd: Path, output: IO[bytes]) -> Command:
    """Start a command as a shell does."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    return subprocess.Popen(words, env=environ, cwd=cwd, start_new_session=True, **streams)


def pid_of(process: Any) -> int:
    """Return the pid of a registered process, whose name is ``host:pid``."""
    return int(process.name.rpartition(":")[2])


def is_of_group(pid: int, group: int) -> bool:
    """Return whether a process is alive and belongs to the group."""
    try:
        return os.getpgid(pid) == group
    except ProcessLookupError:
        return False


@contextmanager
def fleet(folder: Path, postgres_url: str, redis_url: str, **options: Any) -> Iterator[Fleet]:
    """Yield a fleet, and end its processes afterwards. After a failure, print the end of their logs."""
    started = Fleet(folder, postgres_url, redis_url, **options)
    try:
        yield started
    except BaseException:
        print(started.logs()[-6000:])  # noqa: T201 — pytest shows it with the failure
        raise
    finally:
        started.stop()
