"""A database for all tests of this folder. It is emptied after each test, since a new database for each takes much
longer.
"""

from collections.abc import Callable, Iterator

import pytest
from expiry_world import check_points
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from core.ledger import outbox
from plugins.expiry.models import Base
from tests.support.plugin_database import created, emptied

TABLES = [*Base.metadata.tables, "rota_runs"]
NAME = "test_expiry"


@pytest.fixture(scope="session")
def shared_url(template: str) -> Iterator[str]:
    with created(template, NAME) as url:
        yield url


@pytest.fixture
def postgres_url(shared_url: str) -> Iterator[str]:
    """Yield the URL of a database that has every table; the plugin's tables are empty."""
    with emptied(shared_url, TABLES) as url:
        yield url


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session


@pytest.fixture
def check_invariants(database: Engine) -> Callable[[], None]:
    """Assert the conditions on points that hold between any two transactions."""

    def check() -> None:
        with database.connect() as connection:
            assert check_points(connection) == []

    return check


class Published(list[tuple[str, dict[str, object]]]):
    """A carrier without Redis, which keeps publications."""

    def send(self, outgoing: object) -> None:
        raise AssertionError("expiry enqueues nothing")

    def publish(self, channel: str, message: dict[str, object]) -> None:
        self.append((channel, message))


@pytest.fixture
def published() -> Iterator[Published]:
    """Return the publications of transactions that have committed."""
    kept = Published()
    outbox.attach(kept)
    yield kept
    outbox.attach(None)


@pytest.fixture
def do(database: Engine) -> Callable[..., int]:
    """Return a function that executes a statement and commits. It returns the number of changed rows."""

    def execute(statement: str, **parameters: object) -> int:
        with database.begin() as connection:
            return connection.execute(text(statement), parameters).rowcount

    return execute
