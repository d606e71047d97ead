"""A real PostgreSQL with every plugin's tables, emptied after each test, and an upload root."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from maintenance_world import World
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from core import database
from core.testing import create_database
from plugins.maintenance.models import Base
from plugins.maintenance.settings import MaintenanceSettings

TABLES = ", ".join(Base.metadata.tables)


@pytest.fixture(scope="session")
def engine(template: str) -> Iterator[Engine]:
    engine = database.connect(create_database(template, "maintenance", template=True), pool_size=30)
    yield engine
    database.dispose(engine)


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    MaintenanceSettings.forget()
    yield
    MaintenanceSettings.forget()
    if "engine" in request.fixturenames:
        empty_tables(request.getfixturevalue("engine"))


def empty_tables(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {TABLES} RESTART IDENTITY CASCADE"))


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "uploads"
    made.mkdir()
    return made


@pytest.fixture
def world(session: Session, root: Path) -> World:
    return World(session, root)
