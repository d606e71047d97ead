"""A fleet in a virtual environment, in which pip installs and uninstalls plugins."""

import json
import socket
import urllib.request
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dramatiq.message import Message
from sqlalchemy import text

from core.embedded import EmbeddedRedis
from core.transport import redis as redis_broker
from core.transport.redis import RotaBroker
from tests.support.eventually import eventually
from tests.support.fleet import Fleet
from tests.support.supervised import supervised
from tests.support.wheels import Environment

ENVIRON = {"ROTA_ORPHAN_SECONDS": "2"}
#: The two settings with which threads take runs directly from the ledger, by name.
WITHOUT_REDIS = {
    "local": {"SCHEDULER_MODE": "local", "REDIS_URL": ""},  # an empty variable counts as not set
    "auto": {"SCHEDULER_MODE": "auto"},
}
#: Names of jobs, each with its queue.
Wanted = Collection[tuple[str, str]]
LONGEST = 60
ACTORS = """
from core.main import broker

print(*broker.actors)
print(*[name for name, actor in broker.actors.items() if "periodic" in actor.options])
"""
LOCAL_ACTORS = """
from core.worker import local
from core.worker.process import gather

print(*local.build(gather()).actors)
"""
#: Runs of every kind that is due now or soon: requested, sent and lost, delayed, and waiting for a retry.
DUE = text("""
    INSERT INTO rota_runs (job, queue, exclusive, state, reason, attempt, due_at, sent_at)
    SELECT job, queue, false, state, reason, attempt, due_at, sent_at
    FROM unnest(CAST(:jobs AS text[]), CAST(:queues AS text[])) AS wanted (job, queue), (VALUES
        ('queued', NULL, 0, now(), NULL),
        ('queued', NULL, 0, now(), now() - interval '1 hour'),
        ('queued', NULL, 0, now() + interval '1 second', NULL),
        ('retrying', 'error', 2, now(), NULL)
    ) AS kinds (state, reason, attempt, due_at, sent_at)
    RETURNING *
""")
REMEMBER = """
from core import database
from core.ledger import releases
from core.worker.process import gather

process = gather()
with database.autocommit(process.engine) as connection:
    releases.record(connection, releases.of(process.registry))
"""


@dataclass
class Service:
    """The workers and schedulers of an environment, and its command line."""

    fleet: Fleet
    environment: Environment
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start a worker and a scheduler, whose metrics start from zero."""
        self.environ["ROTA_METRICS_DIR"] = str(self.folder / f"metrics-{len(self.fleet.processes)}")
        self.fleet.together(
            lambda: self.fleet.worker(**self.environ), lambda: self.fleet.scheduler(**self.environ)
        )  # fmt: skip

    @contextmanager
    def without_redis(self, path: str, redis: EmbeddedRedis) -> Iterator[None]:
        """Run a worker that takes runs directly from the ledger. For the path ``auto``, first kill ``redis``."""
        with supervised(self.fleet, processes=1, **self.environ, **WITHOUT_REDIS[path]):
            if path == "auto":
                self.lose(redis)
            yield

    def lose(self, redis: EmbeddedRedis) -> None:
        """Kill Redis, and wait until the worker takes runs from the ledger."""
        redis.kill()
        eventually(lambda: "redis.away" in self.fleet.logs(), within=LONGEST)

    def remember(self) -> None:
        """Record the installed jobs in the ledger, as if a process with them had run."""
        self.python(REMEMBER)

    def make_due(self, wanted: Wanted) -> list[Any]:
        """Request runs of every kind in one transaction. Return their rows, in the order of their ids."""
        jobs, queues = zip(*wanted, strict=True)
        with self.fleet.engine.begin() as connection:
            rows = connection.execute(DUE, {"jobs": list(jobs), "queues": list(queues)}).all()
            connection.exec_driver_sql("NOTIFY rota_due")
        return sorted(rows, key=lambda row: row.id)

    def assert_passed_over(self, gone: Wanted, *, beside: Wanted) -> list[Any]:
        """Request runs of all these jobs in one transaction. Check that the runs of the jobs in ``gone`` are orphaned
        without an attempt, while the runs of the jobs in ``beside`` succeed. Return the rows of the orphans.
        """
        rows = self.make_due([*gone, *beside])
        present = [row for row in rows if (row.job, row.queue) in beside]
        absent = [row for row in rows if (row.job, row.queue) in gone]
        eventually(lambda: set(self.states(present)) == {"succeeded"}, within=LONGEST)
        marks = [(row.sent_at, now.sent_at) for row, now in zip(absent, self.now(absent), strict=True)]
        eventually(lambda: all(row.finished_at for row in self.now(absent)), within=LONGEST)

        ended = self.now(absent)
        assert {row.state for row in ended} == {"orphaned"}
        assert [(now.attempt, now.former_state) for now in ended] == [(row.attempt, row.state) for row in absent]
        assert [(then, now) for then, now in marks if now not in (then, None)] == []
        return ended

    def stop(self) -> None:
        """Stop all processes, and wait for their end."""
        running = [process for process in self.fleet.processes if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            self.fleet.wait(process, within=60)

    def rota(self, *words: str, **environ: str):
        """Run ``rota``."""
        return self.environment.run("rota", *words, **{**self.fleet.environment(), **self.environ, **environ})

    def json(self, *words: str) -> Any:
        """Return the JSON that a command of ``rota`` prints."""
        return json.loads(self.rota(*words, "--json").stdout)

    def python(self, program: str, **environ: str) -> str:
        """Return the output of a Python program in this environment."""
        environ = {**self.fleet.environment(), **self.environ, **environ}
        done = self.environment.run("python", "-c", program, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def actors(self) -> set[str]:
        """Return the actors of a worker or a scheduler."""
        return self.actors_and_periodic()[0]

    def actors_and_periodic(self) -> tuple[set[str], set[str]]:
        """Return the actors of a worker or a scheduler, and the actors for which periodiq has a schedule."""
        actors, periodic = self.python(ACTORS).splitlines()
        return set(actors.split()), set(periodic.split())

    def local_actors(self) -> set[str]:
        """Return the actors of the process of local mode."""
        return set(self.python(LOCAL_ACTORS, **WITHOUT_REDIS["local"]).split())

    def jobs(self) -> set[str]:
        """Return the jobs that the command line lists."""
        return {job["name"] for job in self.json("jobs")}

    def send(self, actor: str, queue: str, **options: int) -> None:
        """Put a message on a queue."""
        broker = RotaBroker(redis_broker.connect(self.fleet.redis_url))
        broker.enqueue(Message(queue_name=queue, actor_name=actor, args=(), kwargs={}, options=options))
        broker.close()

    def now(self, rows: Iterable[Any]) -> list[Any]:
        """Return the present rows of runs, in the order of their ids."""
        return self.fleet.rows("SELECT * FROM rota_runs WHERE id = ANY(:ids) ORDER BY id", ids=[row.id for row in rows])

    def states(self, rows: Iterable[Any]) -> list[str]:
        """Return the present states of runs."""
        return [row.state for row in self.now(rows)]

    def known(self) -> set[str]:
        """Return the jobs of live processes."""
        statement = """
            SELECT DISTINCT jsonb_object_keys(jobs) AS job FROM rota_releases
            WHERE fingerprint IN (SELECT release FROM rota_processes WHERE expires_at > clock_timestamp())
        """
        return {row.job for row in self.fleet.rows(statement)}

    def dead_letters(self, queue: str) -> int:
        """Return the number of dead letters of a queue."""
        return int(self.fleet.redis.hlen(f"dramatiq:{queue}.XQ.msgs"))

    def metrics(self) -> str:
        """Return the metrics of the worker as text."""
        port = self.fleet.environ["ROTA_METRICS_PORT"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


def free_port() -> str:
    """Return a port on which no server listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])
