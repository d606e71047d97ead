"""Real ``dramatiq core.main`` and ``periodiq core.main`` processes, started, killed and paused by tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import Engine, text

from core import database
from tests.support import chaos
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]


@dataclass
class Started:
    """What a chaos job told of its start."""

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
    environ: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        chaos.install(self.folder / "site", self.jobs)
        self.engine: Engine = database.connect(self.postgres_url)
        self.redis = redis.Redis.from_url(self.redis_url, socket_timeout=None, decode_responses=True)
        with self.engine.begin() as connection:
            connection.exec_driver_sql(chaos.EFFECTS)

    def environment(self) -> dict[str, str]:
        """What the processes have in theirs."""
        return {
            **os.environ,
            "DATABASE_URL": self.postgres_url,
            "REDIS_URL": self.redis_url,
            "PYTHONPATH": os.pathsep.join([str(self.folder / "site"), str(ROOT)]),
            "ROTA_METRICS_PORT": "0",
            **self.environ,
        }

    def start(self, *command: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start a command of the virtual environment, in a session of its own, its output in a file."""
        log = self.folder / f"{command[0]}-{len(self.processes)}.log"
        executable = Path(sys.executable).parent / command[0]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(executable), *command[1:]],
                env={**self.environment(), **environ},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def worker(self, *, processes: int = 1, threads: int = 8, **environ: str) -> subprocess.Popen[bytes]:
        """Start a worker and wait until all its processes are registered."""
        before = len(self.registered("worker"))
        options = ["--processes", str(processes), "--threads", str(threads)]
        worker = self.start("dramatiq", "core.main", *options, **environ)
        eventually(lambda: len(self.registered("worker")) >= before + processes, within=30)
        return worker

    def scheduler(self, **environ: str) -> subprocess.Popen[bytes]:
        """Start a scheduler and wait until its loop runs."""
        before = len(self.registered("scheduler"))
        scheduler = self.start("periodiq", "core.main", **environ)
        eventually(lambda: len(self.registered("scheduler")) > before, within=30)
        return scheduler

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL the process and all its children at once."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def pause(self, process: subprocess.Popen[bytes]) -> None:
        """SIGSTOP the process and all its children."""
        os.killpg(process.pid, signal.SIGSTOP)

    def wake(self, process: subprocess.Popen[bytes]) -> None:
        """SIGCONT the process and all its children."""
        os.killpg(process.pid, signal.SIGCONT)

    def terminate(self, process: subprocess.Popen[bytes], *, within: float = 30) -> int:
        """Stop the process gracefully, and return its exit status."""
        process.terminate()
        return process.wait(within)

    def stop(self) -> None:
        """Kill whatever is left, and close the connections."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.processes:
            process.wait(10)
        self.redis.close()
        self.engine.dispose()

    def rows(self, statement: str, **parameters: Any) -> list[Any]:
        """The rows of a query."""
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement), parameters).all())

    def registered(self, kind: str) -> list[Any]:
        """The live processes of a kind."""
        return self.rows(
            "SELECT * FROM rota_processes WHERE kind = :kind AND expires_at > clock_timestamp()", kind=kind
        )  # fmt: skip

    def runs(self, job: str) -> list[Any]:
        """The runs of a job, oldest first."""
        return self.rows("SELECT * FROM rota_runs WHERE job = :job ORDER BY id", job=job)

    def effects(self, job: str) -> list[Any]:
        """The effects of a job, oldest first."""
        return self.rows("SELECT * FROM effects WHERE job = :job ORDER BY id", job=job)

    def request(self, job: str, count: int = 1) -> list[int]:
        """Have ``job`` run ``count`` times, as an application without Redis does."""
        insert = """
            INSERT INTO rota_runs (job, queue, exclusive) SELECT :job, 'chaos', false FROM generate_series(1, :count)
            RETURNING id
        """
        with self.engine.begin() as connection:
            ids = list(connection.execute(text(insert), {"job": job, "count": count}).scalars())
            connection.exec_driver_sql("NOTIFY rota_due")
        return ids

    def next_start(self, *, within: float = 20) -> Started:
        """The next start that a chaos job tells of."""
        told = self.redis.blpop([chaos.STARTED], timeout=within)
        assert told is not None, f"no job started within {within} s"
        job, run_id, attempt, pid = told[1].split()
        return Started(job, int(run_id), int(attempt), int(pid))

    def go_on(self, run_id: int) -> None:
        """Let a waiting run end, every attempt of it."""
        self.redis.rpush(f"{chaos.GO_ON}{run_id}", *["go"] * 10)

    def logs(self) -> str:
        """Everything the processes have written."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))


@contextmanager
def fleet(folder: Path, postgres_url: str, redis_url: str, **options: Any) -> Iterator[Fleet]:
    """A fleet, all of whose processes are gone afterwards; on a failure the end of their logs is shown."""
    started = Fleet(folder, postgres_url, redis_url, **options)
    try:
        yield started
    except BaseException:
        print(started.logs()[-6000:])  # noqa: T201 — pytest shows it with the failure
        raise
    finally:
        started.stop()
