"""An application that uses the service. It requests runs in its own transactions, and records which commits
succeeded.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

import redis
from dramatiq.message import Message
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core import database
from core.plugins import loading
from core.testing import registry_of
from core.transport import redis as redis_broker
from core.transport.redis import RotaBroker
from tests.faults import flow_jobs, workload
from tests.faults.history import Letter
from tests.faults.traces import KEYS
from tests.faults.world import World, now

NOTE = text("INSERT INTO fault_requests VALUES (:run)")
#: One of this many requests is for the job that kills its process.
POISON_ONCE_IN = 250


@dataclass
class Client:
    """Requests a few runs a second until it is told to stop."""

    world: World
    dice: Random
    per_second: float = 6
    #: The weight of each job in the random choice.
    weights: Mapping[str, int] = field(default_factory=lambda: workload.REQUESTS)
    #: The runs whose request the client saw committed.
    acknowledged: list[int] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start to request runs."""
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop requesting runs."""
        self._stopping.set()
        self._thread.join(60)

    def _run(self) -> None:
        engine = database.connect(self.world.url)
        broker = RotaBroker(redis_broker.connect(self.world.servers.redis.url))
        with loading.using(registry_of(*workload.JOBS)):
            while not self._stopping.wait(self.dice.expovariate(self.per_second)):
                try:
                    with Session(engine) as session:
                        self.request(session)
                except DBAPIError:
                    engine.dispose()
                if not self.world.is_local:
                    self.send(broker)
        broker.close()
        database.dispose(engine)

    def request(self, session: Session) -> None:
        """Request runs. The client counts them as requested only after the commit has returned."""
        job, key = self.draw()
        asked = flow_jobs.ask(session, job, key, self.dice)
        session.execute(NOTE, [{"run": run_id} for run_id in asked])
        session.commit()
        self.acknowledged += asked

    def draw(self) -> tuple[str, str]:
        """Draw a job and a key."""
        if self.dice.randrange(POISON_ONCE_IN) == 0:
            return "poison", ""
        (job,) = self.dice.choices(list(self.weights), list(self.weights.values()))
        return job, self.dice.choice(KEYS) if job in flow_jobs.KEYED else ""

    def send(self, broker: RotaBroker) -> None:
        """Send a message of the fast lane. The client counts it only if Redis has taken it."""
        number = len(self.letters)
        message = Message(
            queue_name=workload.FAST_QUEUE, actor_name="letter", args=(), kwargs={"number": number}, options={}
        )
        try:
            broker.enqueue(message)
        except redis.RedisError:
            return
        self.letters.append(Letter(number, now()))
