"""One database for all tests of this folder, emptied after each: a new one for each would take most of the time."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from core import database as databases
from core.testing import create_database, drop_database
from plugins.mail.models import Base

TABLES = ", ".join([*Base.metadata.tables, "rota_runs", "rota_key_schedules"])
NAME = "test_mail"


@pytest.fixture(scope="session")
def shared_url(template: str) -> Iterator[str]:
    yield create_database(template, NAME, template=True)
    drop_database(template, NAME)


@pytest.fixture
def postgres_url(shared_url: str) -> Iterator[str]:
    """The URL of a database that has every table, all of ours empty."""
    yield shared_url
    engine = databases.connect(shared_url)
    with databases.autocommit(engine) as connection:
        connection.exec_driver_sql(f"TRUNCATE {TABLES} RESTART IDENTITY CASCADE")
    databases.dispose(engine)


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session
