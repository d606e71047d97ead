"""A real PostgreSQL with this plugin's tables, emptied after each test."""

import importlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from customer_service_world import World
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from core.database import connect
from core.embedded import EmbeddedPostgres
from plugins.customer_service import notifications, triggers
from plugins.customer_service.models import Agent, Base, Chat, QueueEntry

TABLES = ", ".join(Base.metadata.tables)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("customer_service"))
    postgres.start()
    engine = connect(postgres.url, pool_size=60)
    migrate(engine)
    yield engine
    engine.dispose()
    postgres.stop()


def migrate(engine: Engine) -> None:
    revision = importlib.import_module("plugins.customer_service.migrations.0001_queue_and_chats")
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        revision.upgrade()


@pytest.fixture(autouse=True)
def _empty_tables(engine: Engine) -> Iterator[None]:
    yield
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {TABLES} RESTART IDENTITY"))


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What left for core: the jobs enqueued and the messages published, committed or not."""
    left = SimpleNamespace(jobs=[], published=[])
    monkeypatch.setattr(triggers, "enqueue", lambda session, job: left.jobs.append((session, job)))
    monkeypatch.setattr(
        notifications, "publish", lambda session, channel, message: left.published.append((channel, message))
    )
    return left


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@pytest.fixture
def world(session: Session) -> World:
    return World(session)


@pytest.fixture
def check_invariants(engine: Engine) -> Callable[[], None]:
    """What must hold between any two transactions."""

    def check() -> None:
        with Session(engine) as session:
            active = dict(
                session.execute(
                    select(Chat.agent_id, func.count()).where(Chat.state == "active").group_by(Chat.agent_id)
                ).all()
            )
            agents = session.scalars(select(Agent)).all()
            assert {agent.id: agent.current_chats for agent in agents if agent.current_chats} == active
            assert [agent.id for agent in agents if agent.current_chats > agent.capacity] == []
            entries = session.scalars(select(Chat.queue_entry_id)).all()
            assert len(entries) == len(set(entries))
            assigned = session.scalars(select(QueueEntry.id).where(QueueEntry.state.in_(["assigned", "served"]))).all()
            assert set(assigned) == set(entries)

    return check
