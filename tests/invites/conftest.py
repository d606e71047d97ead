"""A database for all tests of this folder. It is emptied after each test, since a new database for each takes much
longer.
"""

from collections.abc import Callable, Iterator

import pytest
from invites_office import Office
from invites_world import World
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from core.testing import RunJob
from plugins.invites.models import Base
from plugins.invites.settings import InvitesSettings
from tests.support.plugin_database import created, emptied
from tests.support.simulated_gateway import GatewayProcess, gateway_process

TABLES = [*Base.metadata.tables, "rota_runs", "rota_limits", "rota_closings"]
NAME, CRASHED = "test_invites", "test_invites_crashed"


@pytest.fixture(scope="session")
def shared_url(template: str) -> Iterator[str]:
    with created(template, NAME) as url:
        yield url


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, template: str, shared_url: str) -> Iterator[str]:
    """Yield the URL of a database that has every table, with empty tables of this plugin. A test with real processes
    gets a database of its own.
    """
    is_crash = request.node.get_closest_marker("crash")
    with created(template, CRASHED) if is_crash else emptied(shared_url, TABLES) as url:
        yield url


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session


@pytest.fixture
def world(session: Session) -> World:
    """Return functions that make rows, with one call each."""
    return World(session)


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that sets settings of the plugin: ``configure(remove_orphans="true")``."""

    def set_them(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(InvitesSettings.prefix + name.upper(), value)
        InvitesSettings.forget()

    yield set_them
    InvitesSettings.forget()


@pytest.fixture(scope="session")
def gateway_server() -> Iterator[GatewayProcess]:
    """Yield a gateway in a process of its own, with pages of ten members."""
    with gateway_process("--page", "10", token="sesame-token") as running:
        yield running


@pytest.fixture
def office(gateway_server: GatewayProcess, world: World, run_job: RunJob, configure: Callable[..., None]) -> Office:
    """Return a service whose gateway has no teams and no faults."""
    gateway_server.control("reset")
    configure(gateway=gateway_server.url, gateway_token="sesame-token")
    return Office(world, gateway_server, run_job)
