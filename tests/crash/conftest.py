"""Fixtures of the crash tests: a fleet of real processes for each test, and servers that a test may kill."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from core import database
from core.embedded import EmbeddedPostgres, EmbeddedRedis
from core.plugins import loading
from core.schema import upgrade
from tests.support.fleet import Fleet, fleet
from tests.support.service import ENVIRON, Service, free_port
from tests.support.wheels import Environment


@pytest.fixture
def make_fleet(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Callable[..., Fleet]]:
    """Yield a function that makes the test's fleet. The options are those of Fleet."""
    servers = {"postgres_url": postgres_url, "redis_url": redis_url}
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(fleet(tmp_path, **{**servers, **options}))


@pytest.fixture
def make_plain_service(make_fleet, tmp_path: Path) -> Callable[..., Service]:
    """Yield a function that makes a service of a given class, with only the tests' own plugin. The options are those of
    Fleet.
    """

    def make(kind: type[Service] = Service, **options) -> Service:
        environment = Environment(tmp_path / "venv")
        environ = {**ENVIRON, "ROTA_METRICS_PORT": free_port(), **options.pop("environ", {})}
        fleet = make_fleet(jobs="touch,fast", bin=environment.bin, cwd=tmp_path, environ=environ, **options)
        return kind(fleet, environment, tmp_path / "service")

    return make


@pytest.fixture
def own_postgres(servers_folder: Path, tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Yield a PostgreSQL with all tables, which the test may kill."""
    server = EmbeddedPostgres(servers_folder / tmp_path.name)
    server.start()
    engine = database.connect(server.url)
    list(upgrade.upgrade(engine, loading.current()))
    engine.dispose()
    yield server
    server.stop()


@pytest.fixture
def own_redis(servers_folder: Path, tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """Yield a Redis that the test may kill. If it is started again, it has the same port and the same data."""
    server = EmbeddedRedis(servers_folder / tmp_path.name)
    server.start()
    yield server
    server.stop()
