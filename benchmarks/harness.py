"""Servers and workers for the benchmarks: real PostgreSQL (fsync on) and Redis, real processes, quiet logs."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from sqlalchemy import Engine, text

from core import database
from core.embedded import embedded_servers, temporary_folder
from core.ledger.carrier import OutgoingRun
from core.plugins import loading
from core.schema import upgrade
from core.transport import redis as redis_broker

ROOT = Path(__file__).parents[1]
PROCESSES, THREADS = 2, 8

PLUGIN = '''\
import os
import time

from benchmarks import meter
from core import cron, every, hookimpl, job


@job("bench-fast", queue="bench-fast", ledger=False)
def fast(run, sent_at: float = 0.0) -> None:
    """The fast lane."""
    meter.tick(sent_at)


@job("bench-ledger", queue="bench-ledger", overlap="allow")
def ledger(run, sent_at: float = 0.0) -> None:
    """A run of the ledger."""
    meter.tick(sent_at)


def slot_job(number):
    @job(f"bench-slot-{number}", queue="bench-slots", schedule=every(seconds=30))
    def tick(run) -> None:
        """A 30-second slot."""
        meter.tick(run.slot.timestamp())
    return tick


SLOT_JOBS = [slot_job(number) for number in range(10)]


@job("bench-alone", queue="bench-alone", schedule=every(seconds=7))
def alone(run) -> None:
    """A slot that comes by itself, but for every 210 s."""
    meter.tick(run.slot.timestamp())


def minute_job(number):
    @job(f"bench-minute-{number}", queue="bench-minutes", schedule=cron("* * * * *"))
    def tick(run) -> None:
        """One of many that are due at the same instant."""
    return tick


def queue_job(number):
    @job(f"bench-queue-{number}", queue=f"bench-queue-{number}")
    def queued(run):
        pass

    return queued


#: How long each run of a job of ``bench-jobs`` takes.
JOB_SECONDS = float(os.environ.get("BENCH_JOB_SECONDS", "0.005"))


def one_job(number):
    @job(f"bench-job-{number}", queue="bench-jobs", overlap="allow")
    def work(run):
        """One of many jobs of a queue, which keeps its thread for a moment."""
        time.sleep(JOB_SECONDS)

    return work


ONE_QUEUE_JOBS = [one_job(number) for number in range(int(os.environ.get("BENCH_JOBS", "0")))]
#: For those who measure many queues, without any schedule.
QUEUE_JOBS = [queue_job(number) for number in range(int(os.environ.get("BENCH_QUEUES", "0")))]
MINUTE_JOBS = [minute_job(number) for number in range(int(os.environ.get("BENCH_SCHEDULES", "0")))]


@hookimpl
def register_jobs():
    if QUEUE_JOBS or ONE_QUEUE_JOBS:
        return [fast, ledger, *QUEUE_JOBS, *ONE_QUEUE_JOBS]
    return [fast, ledger, alone, *SLOT_JOBS, *MINUTE_JOBS]
'''


@dataclass
class Bench:
    """The servers, and how to start workers on them."""

    folder: Path
    #: On a tmpfs, so that the meter costs no disk.
    ticks: Path
    postgres_url: str
    redis_url: str
    engine: Engine = field(init=False)
    client: redis.Redis = field(init=False)
    broker: redis_broker.RotaBroker = field(init=False)

    def __post_init__(self) -> None:
        site = self.folder / "site"
        info = site / "bench-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[rota.plugins]\nbench = bench_plugin\n")
        (site / "bench_plugin.py").write_text(PLUGIN)
        self.engine = database.connect(self.postgres_url)
        self.client = redis_broker.connect(self.redis_url)
        self.broker = redis_broker.RotaBroker(self.client)
        list(upgrade.upgrade(self.engine, loading.current()))

    def environment(self, ticks: Path) -> dict[str, str]:
        """What the workers have in theirs."""
        return {
            **os.environ,
            "DATABASE_URL": self.postgres_url,
            "REDIS_URL": self.redis_url,
            "PYTHONPATH": os.pathsep.join([str(self.folder / "site"), str(ROOT)]),
            "ROTA_LOG_LEVEL": "WARNING",
            "ROTA_METRICS_PORT": "0",
            "BENCH_TICKS": str(ticks),
        }

    @contextmanager
    def process(self, ticks: Path, *command: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command of the virtual environment, killed afterwards."""
        executable = str(Path(sys.executable).parent / command[0])
        with (self.folder / "processes.log").open("ab") as log:
            process = subprocess.Popen(
                [executable, *command[1:]],
                env={**self.environment(ticks), **environ},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def worker(self, ticks: Path, module: str, queue: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """``dramatiq module`` with the processes and threads of the published baselines."""
        options = ["-p", str(PROCESSES), "-t", str(THREADS), "-Q", queue]
        return self.process(ticks, "dramatiq", module, *options)

    def queue_runs(self, count: int) -> None:
        """Insert ``count`` runs of bench-ledger, and their messages."""
        insert = """
            INSERT INTO rota_runs (job, queue, exclusive, sent_at)
            SELECT 'bench-ledger', 'bench-ledger', false, clock_timestamp() FROM generate_series(1, :count) RETURNING id
        """
        with self.engine.begin() as connection:
            ids = connection.execute(text(insert), {"count": count}).scalars().all()
        from core.transport.redis import RedisCarrier

        RedisCarrier(self.broker.redis_queues).send(
            [OutgoingRun(run_id, "bench-ledger", "bench-ledger") for run_id in ids]
        )

    def queue_messages(self, queue: str, count: int) -> None:
        """Put ``count`` plain messages for the actor ``queue`` on the queue of that name."""
        from dramatiq.message import Message

        message: Message[object] = Message(queue_name=queue, actor_name=queue, args=(), kwargs={}, options={})
        self.broker.redis_queues.enqueue_many(message.copy() for _ in range(count))

    def reset(self) -> None:
        """Empty Redis and the ledger."""
        self.client.flushall()
        with self.engine.begin() as connection:
            connection.exec_driver_sql("TRUNCATE rota_runs, rota_processes, rota_schedules")


@contextmanager
def bench() -> Iterator[Bench]:
    """A bench in a temporary folder; the ticks go to memory, not to a disk."""
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=shared) as ticks,
        temporary_folder() as folder,
        embedded_servers(Path(folder) / "servers") as (postgres, server),
    ):
        yield Bench(Path(folder), Path(ticks), postgres.url, server.url)


def wait_for(condition: Callable[[], bool], *, within: float) -> None:
    """Wait for ``condition``."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"the benchmark's jobs did not end within {within} s")
        time.sleep(0.05)
