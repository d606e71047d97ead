"""A real PostgreSQL with this plugin's tables, which are emptied after each test."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from customer_service_world import World
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from core.database import connect
from core.testing import create_database, drop_database
from plugins.customer_service import notifications, triggers
from plugins.customer_service.models import Agent, Base, Chat, QueueEntry

NAME = "test_customer_service"
TABLES = ", ".join([*Base.metadata.tables, "rota_runs"])


@pytest.fixture(scope="session")
def engine(template: str) -> Iterator[Engine]:
    url = create_database(template, NAME, template=True)
    engine = connect(url, pool_size=60)
    yield engine
    engine.dispose()
    drop_database(template, NAME)


@pytest.fixture(autouse=True)
def _empty_tables(engine: Engine) -> Iterator[None]:
    yield
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {TABLES} RESTART IDENTITY CASCADE"))


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Record the enqueued jobs and the published messages, whether or not they are committed."""
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
    """Assert the conditions that hold between any two transactions."""

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
