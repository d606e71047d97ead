"""Fixtures for plugins' tests: a real database, a frozen clock, and jobs run with the real claim and commit.

Put ``pytest_plugins = ["core.testing"]`` into your ``conftest.py`` to use the fixtures below::

    def test_close_day(database, run_job):
        with Session(database) as session, session.begin():
            session.add(Sale(amount=5))

        run = run_job(close_day, now=datetime(2026, 3, 1, 3, 30, tzinfo=UTC))

The servers are those of the extra ``rota[embedded]``. They are started once per test session in a temporary folder.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, MetaData, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from core import database, settings
from core.embedded import EmbeddedPostgres, EmbeddedRedis, embedded_servers, temporary_folder
from core.jobs import arguments
from core.jobs.job import Job
from core.jobs.keyed import WantedSchedules
from core.jobs.middleware import RunMiddleware
from core.jobs.registry import Plugin, Registry
from core.ledger import processes, runs
from core.ledger.models import RunRow
from core.ledger.processes import Identity
from core.plugins import loading
from core.schema import upgrade
from core.worker.executor import Executor
from core.worker.membership import LeasesInHand, application_name, process_name

__all__ = [
    "FrozenClock",
    "RunJob",
    "embedded",
    "environment",
    "executor",
    "frozen_clock",
    "postgres_url",
    "redis_url",
    "registry_of",
    "run_job",
    "schema_differences",
    "servers_folder",
    "take_back",
]

#: A test may stop in a debugger for this long.
LONG_LEASE = timedelta(hours=1)


@dataclass(slots=True)
class FrozenClock:
    """A clock that changes only when it is advanced."""

    now: datetime = field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **span: float) -> datetime:
        """Add ``timedelta(**span)``, and return the new time."""
        self.now += timedelta(**span)
        return self.now


@pytest.fixture
def frozen_clock() -> FrozenClock:
    """A clock that is set to the beginning of 2026."""
    return FrozenClock()


@pytest.fixture(scope="session")
def embedded(servers_folder: Path) -> Iterator[tuple[EmbeddedPostgres, EmbeddedRedis]]:
    """Real PostgreSQL and Redis, which are started once."""
    with embedded_servers(servers_folder) as servers:
        yield servers


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """The folder of the servers' data, outside pytest's own folder.

    No other user can enter pytest's folder. If root runs the tests, the servers run as another user.
    """
    with temporary_folder("rota-tests-") as folder:
        yield folder


@pytest.fixture(scope="session")
def template(embedded: tuple[EmbeddedPostgres, EmbeddedRedis]) -> str:
    """The URL of a database that has the tables of the core and of every installed plugin.

    The database is cloned for each test.
    """
    postgres, _ = embedded
    url = create_database(postgres.url, "rota_template")
    engine = database.connect(url)
    list(upgrade.upgrade(engine, loading.current()))
    database.dispose(engine)
    return url


@pytest.fixture
def postgres_url(template: str) -> Iterator[str]:
    """The URL of a new database, which is dropped after the test."""
    name = f"test_{uuid.uuid4().hex}"
    yield create_database(template, name, template=True)
    drop_database(template, name)


@pytest.fixture
def redis_url(embedded: tuple[EmbeddedPostgres, EmbeddedRedis]) -> str:
    """The URL of an empty Redis."""
    import redis

    _, server = embedded
    client = redis.Redis.from_url(server.url)
    client.flushall()
    client.close()
    return server.url


@pytest.fixture
def environment(postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set DATABASE_URL and REDIS_URL of this process to the test's own servers."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    settings.current.cache_clear()
    database.engine.cache_clear()
    yield
    settings.current.cache_clear()
    database.engine.cache_clear()


@pytest.fixture(name="database")
def database_engine(environment: None, postgres_url: str) -> Iterator[Engine]:
    """An engine on a new database with every table."""
    engine = database.connect(postgres_url, pool_size=100)
    yield engine
    database.dispose(engine)


@dataclass(slots=True)
class Member:
    """The registration with which a test claims runs. No heartbeat is sent for it.

    ``process_id`` is the id of the process in the ledger, or None if the process is not registered.
    """

    process_id: int | None
    in_hand: LeasesInHand = field(default_factory=LeasesInHand)


@contextmanager
def registered(engine: Engine, kind: str = "worker") -> Iterator[int]:
    """Register this process so that it can claim runs. Yield its id in the ledger."""
    identity = Identity(kind, process_name(), application_name())
    with database.dedicated(engine) as connection:
        process_id = processes.register(connection, identity, LONG_LEASE)
        yield process_id
        processes.resign(connection, process_id)


@pytest.fixture
def executor(database: Engine) -> Iterator[Executor]:
    """The executor that a worker uses for its runs."""
    with registered(database) as process_id:
        yield Executor(database, Member(process_id), process_name())


@dataclass(frozen=True, slots=True)
class RunJob:
    """Requests a run of a job, takes it through one attempt with the real claim and commit, and returns its row."""

    executor: Executor

    def __call__(
        self, job: Job, *, key: str = "", args: Mapping[str, Any] | None = None, now: datetime | None = None
    ) -> RunRow:
        """Request a run and make one attempt. ``now`` is the value of ``run.now``, by default the database's time."""
        run_id = self.request(job, key=key, args=args)
        self.executor.execute(job, run_id, now=now)
        return self.row(run_id)

    def request(self, job: Job, *, key: str = "", args: Mapping[str, Any] | None = None) -> int:
        """Insert a run and leave it queued. Return its id."""
        with Session(self.executor.engine) as session, session.begin():
            return runs.request(
                session,
                job.name,
                key=key,
                queue=job.queue,
                args=arguments.encode(job, args),
                exclusive=job.exclusive,
                delay=timedelta(0),
                carried=True,
            )

    def row(self, run_id: int) -> RunRow:
        """Return the run as the ledger has it now."""
        with Session(self.executor.engine, expire_on_commit=False) as session:
            return session.scalars(select(RunRow).where(RunRow.id == run_id)).one()


@pytest.fixture
def run_job(executor: Executor) -> RunJob:
    """Runs a job as a worker would; see RunJob."""
    return RunJob(executor)


def registry_of(
    *jobs: Job,
    plugin: str = "tests",
    middleware: Sequence[RunMiddleware] = (),
    schedules: Mapping[str, WantedSchedules] | None = None,
) -> Registry:
    """Return a registry of these jobs, surrounded by ``middleware``, with the wanted ``schedules`` of their keys."""
    return Registry((Plugin(plugin, "", "", tuple(jobs), middleware=tuple(middleware), schedules=schedules or {}),))


@pytest.fixture
def use_jobs() -> Iterator[Callable[..., Registry]]:
    """Make these jobs the only jobs during the test; see ``registry_of``."""
    with ExitStack() as stack:
        yield lambda *jobs, **options: stack.enter_context(loading.using(registry_of(*jobs, **options)))


def create_database(server_url: str, name: str, *, template: bool = False) -> str:
    """Create a database on the server of ``server_url``. Return its URL.

    With ``template``, copy the database of that URL.
    """
    url = make_url(server_url)
    clause = f'TEMPLATE "{url.database}"' if template else ""
    _on_server(server_url, f'CREATE DATABASE "{name}" {clause}')
    return url.set(database=name).render_as_string(hide_password=False)


def drop_database(server_url: str, name: str) -> None:
    """Drop a database, even if there are connections to it."""
    _on_server(server_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _on_server(server_url: str, statement: str) -> None:
    engine = database.connect(make_url(server_url).set(database="postgres").render_as_string(hide_password=False))
    with database.autocommit(engine) as connection:
        connection.exec_driver_sql(statement)
    database.dispose(engine)


#: The constraints and indexes of some tables, as PostgreSQL writes them.
DEFINITIONS = text("""
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid::regclass::text = ANY (:tables)
    UNION ALL SELECT tablename, indexname, indexdef FROM pg_indexes WHERE tablename = ANY (:tables)
""")


def schema_differences(engine: Engine, metadata: MetaData, *, plugin: str) -> list[Any]:
    """Return how the migrated tables differ from ``metadata``: columns, types, keys, checks and indexes.

    Also return the tables and indexes whose names do not begin with the name of ``plugin``.
    """
    with engine.connect() as connection:
        different = _columns_that_differ(connection, metadata, f"{plugin}_")
        migrated = _definitions(connection, metadata)
        metadata.drop_all(connection)
        metadata.create_all(connection)
        declared = _definitions(connection, metadata)
        connection.rollback()
    names = {name for table, name, _ in migrated} | set(metadata.tables)
    foreign = sorted(name for name in names if not name.startswith(f"{plugin}_"))
    return [*different, *sorted(migrated ^ declared), *foreign]


def take_back(connection: Connection, migrations: Path) -> None:
    """Downgrade by every revision in the folder ``migrations``, the newest first, in the caller's transaction."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    with Operations.context(MigrationContext.configure(connection)):
        for revision in ScriptDirectory(str(migrations), version_locations=[str(migrations)]).walk_revisions():
            revision.module.downgrade()


def _columns_that_differ(connection: Connection, metadata: MetaData, prefix: str) -> list[Any]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def is_ours(_object: object, name: str | None, kind: str, *_: object) -> bool:
        return kind != "table" or str(name).startswith(prefix)

    context = MigrationContext.configure(connection, opts={"include_object": is_ours, "compare_type": True})
    return list(compare_metadata(context, metadata))


def _definitions(connection: Connection, metadata: MetaData) -> set[tuple[str, str, str]]:
    rows = connection.execute(DEFINITIONS, {"tables": [*metadata.tables]})
    return {(table, name, definition) for table, name, definition in rows}
