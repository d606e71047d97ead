"""Fixtures of the integration tests: rows of the ledger, processes that claim runs, and workers whose threads are in
this process.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import redis
from dramatiq.middleware import CurrentMessage
from dramatiq.worker import Worker
from sqlalchemy import Connection, Engine, text

from core import Run, job
from core import database as databases
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.ledger import claims, outbox, processes, releases
from core.ledger.carrier import Flow
from core.ledger.claims import Verdict
from core.ledger.leases import Lease
from core.ledger.processes import Identity
from core.middleware.fast_lane_retries import FastLaneRetries
from core.middleware.periodiq_options import PeriodiqOptions
from core.testing import create_database, drop_database, registry_of
from core.transport import redis as redis_broker
from core.transport.redis import RedisCarrier, RotaBroker
from core.worker import actors
from core.worker.claiming import ClaimingAhead
from core.worker.executor import Executor
from core.worker.membership import application_name
from tests.support import effects
from tests.support.leader import Leader
from tests.support.ledger import Ledger
from tests.support.web import serving

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
DISCONNECT = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@dataclass
class SharedDatabase:
    """A database for all tests of this folder. It is emptied after each test, since a new database for each takes much
    longer.
    """

    template: str
    url: str = ""
    _tables: list[str] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _connection: Connection | None = None

    def open(self) -> str:
        """Return the URL of the database. Create the database if it does not exist, or if a test has changed its
        tables.
        """
        if not self.url:
            self.url = create_database(self.template, "test_integration", template=True)
            engine = databases.connect(self.url)
            self._stack.callback(engine.dispose)
            self._connection = self._stack.enter_context(databases.autocommit(engine))
            self._connection.exec_driver_sql(effects.TABLE)
            self._tables = self._do(TABLES)
        return self.url

    def clean(self) -> None:
        """Delete all rows of a test."""
        self._do(DISCONNECT)
        if self._do(TABLES) != self._tables:
            self.drop()
            return
        kept = [table for table in self._tables if not table.startswith("rota_migrations_")]
        filled = self._do(
            " UNION ALL ".join(f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})" for table in kept)
        )
        for table in filled:
            self._do(f"DELETE FROM {table} RETURNING 1")

    def drop(self) -> None:
        """Drop the database. The next ``open`` creates it again."""
        self._stack.close()
        if self.url:
            drop_database(self.template, "test_integration")
        self.url = ""

    def _do(self, statement: str) -> list[Any]:
        assert self._connection is not None
        # Without foreign keys, so that the tables can be emptied in any order.
        self._connection.exec_driver_sql("SET session_replication_role = replica")
        return list(self._connection.exec_driver_sql(statement).scalars())


@pytest.fixture(scope="session")
def shared_database(template: str) -> Iterator[SharedDatabase]:
    """Yield the database of this folder."""
    shared = SharedDatabase(template)
    yield shared
    shared.drop()


@pytest.fixture
def postgres_url(shared_database: SharedDatabase) -> Iterator[str]:
    """Yield the URL of an empty database that has every table."""
    yield shared_database.open()
    shared_database.clean()


@pytest.fixture
def ledger(database: Engine) -> Ledger:
    """Return the ledger of this test."""
    return Ledger(database)


@dataclass
class Process:
    """A process that is registered on a connection of its own. When the connection closes, the process is dead."""

    id: int
    connection: Connection
    application: str

    def claim(self, engine: Engine, run_id: int, job: str = "work", **options: Any) -> tuple[Verdict, Lease | None]:
        """Claim a run for this process."""
        with databases.autocommit(engine) as connection:
            return claims.claim(connection, run_id, job=job, process_id=self.id, worker="test:1", **options)

    def lease(self, engine: Engine, run_id: int, job: str = "work") -> Lease:
        """Claim a run for this process, and expect to get its lease."""
        verdict, lease = self.claim(engine, run_id, job)
        assert lease is not None, verdict
        return lease

    def expire(self, engine: Engine) -> None:
        """Set the end of this process's leases to a second ago."""
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE rota_processes SET expires_at = clock_timestamp() - interval '1 second' WHERE id = :id"),
                {"id": self.id},
            )

    def die(self) -> None:
        """Close the connection that holds the process's lock, as the death of the process does."""
        self.connection.close()


@pytest.fixture
def start_process(database: Engine) -> Iterator[Callable[..., Process]]:
    """Yield a function that registers a process."""
    with ExitStack() as stack:

        def start(
            *,
            lease: timedelta = timedelta(hours=1),
            broker_id: str | None = None,
            application: str = "",
            jobs: Sequence[Job] | None = None,
            kind: str = "worker",
            plugin: str = "tests",
            queues: Sequence[str] = (),
            threads: int | None = None,
            reserved: Mapping[str, int] | None = None,
        ) -> Process:
            connection = stack.enter_context(databases.dedicated(database))
            application = application or application_name()
            release = releases.of(registry_of(*jobs, plugin=plugin)) if jobs is not None else None
            if release is not None:
                releases.record(connection, release)
            fingerprint = release.fingerprint if release else None
            identity = Identity(
                kind, "test:1", application, broker_id, tuple(queues), fingerprint, threads, reserved or {}
            )
            return Process(processes.register(connection, identity, lease), connection, application)

        yield start


@pytest.fixture
def process(start_process: Callable[..., Process]) -> Process:
    """Return a process that may claim runs."""
    return start_process()


@dataclass
class Service:
    """A broker and, after ``work`` is called, a worker whose threads are in this process."""

    broker: RotaBroker
    carrier: RedisCarrier
    redis: redis.Redis
    registry: Registry
    stack: ExitStack = field(repr=False)

    def work(self, *, threads: int = 2, poll_ms: int = 100) -> Worker:
        """Start a worker. It is stopped after the test."""
        worker = Worker(self.broker, worker_threads=threads, worker_timeout=poll_ms)
        worker.start()
        self.stack.callback(worker.stop, timeout=5_000)
        return worker

    def waiting(self, queue: str = "default") -> int:
        """Return how many messages wait on a queue."""
        return int(self.redis.llen(f"dramatiq:{queue}"))  # type: ignore[arg-type]

    def dead_letters(self, queue: str = "default") -> list[bytes]:
        """Return the bodies on the dead-letter queue. Entries without a body are left out."""
        return list(self.redis.hgetall(f"dramatiq:{queue}.XQ.msgs").values())  # type: ignore[union-attr]

    def fetched(self, queue: str = "default") -> int:
        """How many messages this broker has fetched and not acknowledged."""
        return int(self.redis.scard(f"dramatiq:__acks__.{self.broker.broker_id}.{queue}"))  # type: ignore[arg-type]

    def put(self, body: bytes | None, redis_id: str, queue: str = "default") -> None:
        """Put raw bytes on a queue, as another program might, without a wake-up token."""
        if body is not None:
            self.redis.hset(f"dramatiq:{queue}.msgs", redis_id, body)  # type: ignore[arg-type]
        self.redis.rpush(f"dramatiq:{queue}", redis_id)


@contextmanager
def service(
    engine: Engine, redis_url: str, registry: Registry, executor: Executor, **options: Any
) -> Iterator[Service]:
    """Yield a broker with an actor for each job, as ``core.main`` builds it, without registering a process."""
    with ExitStack() as stack:
        broker = RotaBroker(
            redis_broker.connect(redis_url),
            middleware=[CurrentMessage(), PeriodiqOptions(), FastLaneRetries()],
            ledger_queues=registry.ledger_queues,
            preparation=ClaimingAhead(registry, executor.claims),
            **options,
        )
        stack.callback(broker.close)
        carrier = RedisCarrier(broker.redis_queues)
        actors.declare(broker, registry, engine, executor, carrier)
        outbox.attach(carrier)
        stack.callback(outbox.attach, None)
        client = redis.Redis.from_url(redis_url, socket_timeout=None)
        stack.callback(client.close)
        yield Service(broker, carrier, client, registry, stack)


@pytest.fixture
def serve_on(
    database: Engine, executor: Executor, use_jobs: Callable[..., Registry]
) -> Iterator[Callable[..., Service]]:
    """Yield a function that makes a service of these jobs on the Redis of a URL. The options are those of
    ``RotaBroker``.
    """
    with ExitStack() as stack:

        def start(redis_url: str, *jobs: Job, **options: Any) -> Service:
            return stack.enter_context(service(database, redis_url, use_jobs(*jobs), executor, **options))

        yield start


@pytest.fixture
def serve(redis_url: str, serve_on: Callable[..., Service]) -> Callable[..., Service]:
    """Return a function that makes a service of these jobs."""
    return lambda *jobs, **options: serve_on(redis_url, *jobs, **options)


class NoCarrier:
    """A carrier without Redis: it keeps what it is given, or raises the error of a Redis that is away."""

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.messages: list[Any] = []
        self.publications: list[tuple[str, dict[str, Any]]] = []
        self.is_away = False
        self.carries = True

    def room(self, _queue: str, wanted: int, _priority: int = 0, *, pending: int = 0) -> int:
        """Grant all that is wanted."""
        return wanted

    def send(self, outgoing: Any) -> None:
        """Keep runs."""
        self._answer()
        self.runs += outgoing

    def post(self, outgoing: Any) -> None:
        """Keep messages of the fast lane."""
        self._answer()
        self.messages += outgoing

    def publish(self, channel: str, message: dict[str, Any]) -> None:
        """Keep a publication."""
        self._answer()
        self.publications.append((channel, message))

    def flows(self, queues: Sequence[str]) -> list[Flow]:
        """Return that no queue has messages."""
        return [Flow(0, 0) for _ in queues]

    def urgent_waiting(self, _queue: str, _priority: int) -> int:
        """Return that no message waits."""
        return 0

    def tell_window(self, _queue: str, _most: int) -> None:
        """Do nothing."""

    def _answer(self) -> None:
        if self.is_away:
            raise redis.ConnectionError("away on purpose")


@pytest.fixture
def carrier() -> Iterator[NoCarrier]:
    """Yield this process's carrier, which keeps what it is given."""
    attached = NoCarrier()
    outbox.attach(attached)
    yield attached
    outbox.attach(None)


@pytest.fixture
def heard() -> Counter[Any]:
    """Return the number of times that each word was heard."""
    return Counter()


@pytest.fixture
def hear(heard: Counter[Any]) -> Job:
    """Return a job of the fast lane that records a word as heard."""

    @job("hear", ledger=False, max_retries=0)
    def hear(run: Run, word: int) -> None:
        heard[word] += 1

    return hear


@pytest.fixture
def lead(
    database: Engine, monkeypatch: pytest.MonkeyPatch, use_jobs: Callable[..., Registry]
) -> Iterator[Callable[..., Leader]]:
    """Yield a function that makes a leading dispatcher, which accounts for the keys of these jobs."""
    with databases.dedicated(database) as connection:
        yield lambda *jobs: Leader(connection, monkeypatch, use_jobs, *jobs)


@pytest.fixture
def client(database: Engine) -> Iterator[Any]:
    """Yield a client of the HTTP service. The test must first name its jobs with ``use_jobs``."""
    with serving() as client:
        yield client
