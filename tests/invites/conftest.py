"""A database for all tests of this folder. It is emptied after each test, since a new database for each takes much
longer.
"""

from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from invites_world import World
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from core import Run, job
from core import database as databases
from core.jobs.registry import Registry
from core.plugins import loading
from core.testing import create_database, drop_database
from plugins.invites.models import Base

TABLES = ", ".join([*Base.metadata.tables, "rota_runs", "rota_limits"])
NAME, CRASHED = "test_invites", "test_invites_crashed"


@pytest.fixture(scope="session")
def shared_url(template: str) -> Iterator[str]:
    yield create_database(template, NAME, template=True)
    drop_database(template, NAME)


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, template: str, shared_url: str) -> Iterator[str]:
    """Yield the URL of a database that has every table, with empty tables of this plugin. A test with real processes
    gets a database of its own.
    """
    if request.node.get_closest_marker("crash"):
        yield create_database(template, CRASHED, template=True)
        drop_database(template, CRASHED)
        return
    yield shared_url
    engine = databases.connect(shared_url)
    with databases.autocommit(engine) as connection:
        connection.exec_driver_sql(f"TRUNCATE {TABLES} RESTART IDENTITY CASCADE")
    databases.dispose(engine)


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session


@pytest.fixture
def world(session: Session) -> World:
    """Return functions that make rows, with one call each."""
    return World(session)


@pytest.fixture(autouse=True)
def _requests_can_be_made() -> Iterator[None]:
    """Let requests be enqueued, although these tests do not send them to a gateway."""
    found = loading.current()
    if "process-invite" in found:
        yield
        return
    plugins = [
        replace(each, jobs=(*each.jobs, process_invite)) if each.name == "invites" else each for each in found.plugins
    ]
    with loading.using(Registry(tuple(plugins))):
        yield


@job("process-invite", queue="invites")
def process_invite(run: Run, request_id: UUID) -> None:
    """Stand for the job that sends a request."""
