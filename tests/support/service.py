"""A fleet whose commands are those of a virtual environment, in which plugins come and go by pip."""

import json
import socket
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dramatiq.message import Message

from core import redis_broker
from core.redis_broker import RotaBroker
from tests.support.fleet import Fleet
from tests.support.wheels import Environment

ENVIRON = {"ROTA_ORPHAN_SECONDS": "2"}


@dataclass
class Service:
    """Workers and schedulers of an environment, what they say of themselves, and the command line beside them."""

    fleet: Fleet
    environment: Environment
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start a worker and a scheduler, whose metrics begin anew."""
        self.environ["ROTA_METRICS_DIR"] = str(self.folder / f"metrics-{len(self.fleet.processes)}")
        self.fleet.together(
            lambda: self.fleet.worker(**self.environ), lambda: self.fleet.scheduler(**self.environ)
        )  # fmt: skip

    def stop(self) -> None:
        """Stop everything, and wait for it."""
        running = [process for process in self.fleet.processes if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            self.fleet.wait(process, within=60)

    def rota(self, *words: str, **environ: str):
        """Run ``rota``."""
        return self.environment.run("rota", *words, **{**self.fleet.environment(), **self.environ, **environ})

    def json(self, *words: str) -> Any:
        """What a command of ``rota`` tells as JSON."""
        return json.loads(self.rota(*words, "--json").stdout)

    def python(self, program: str) -> str:
        """What a program prints in a process of this service."""
        done = self.environment.run("python", "-c", program, **{**self.fleet.environment(), **self.environ})
        assert done.returncode == 0, done.stderr
        return done.stdout

    def actors(self) -> set[str]:
        """The actors of a worker or scheduler."""
        return set(self.python("import core.main; print(*core.main.broker.actors)").split())

    def jobs(self) -> set[str]:
        """The jobs that the command line lists."""
        return {job["name"] for job in self.json("jobs")}

    def send(self, actor: str, queue: str, **options: int) -> None:
        """Put a message on a queue."""
        broker = RotaBroker(redis_broker.connect(self.fleet.redis_url))
        broker.enqueue(Message(queue_name=queue, actor_name=actor, args=(), kwargs={}, options=options))
        broker.close()

    def states(self, rows) -> list[str]:
        """The states of these runs."""
        ids = [row.id for row in rows]
        return [row.state for row in self.fleet.rows("SELECT state FROM rota_runs WHERE id = ANY(:ids)", ids=ids)]

    def known(self) -> set[str]:
        """The jobs that live processes say they have, by their kinds."""
        statement = """
            SELECT DISTINCT jsonb_object_keys(jobs) AS job FROM rota_releases
            WHERE fingerprint IN (SELECT release FROM rota_processes WHERE expires_at > clock_timestamp())
        """
        return {row.job for row in self.fleet.rows(statement)}

    def dead_letters(self, queue: str) -> int:
        """How many messages were set aside of a queue."""
        return int(self.fleet.redis.hlen(f"dramatiq:{queue}.XQ.msgs"))

    def metrics(self) -> str:
        """What the worker tells Prometheus."""
        port = self.fleet.environ["ROTA_METRICS_PORT"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


def free_port() -> str:
    """A port on which nobody listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])
