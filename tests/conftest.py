"""The fixtures of ``core.testing``, and nothing that a plugin's own tests would not have but a choice of servers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import servers

pytest_plugins = ["core.testing"]

# An example that is slow on a busy machine is no failure.
hypothesis.settings.register_profile("rota", deadline=None)
hypothesis.settings.load_profile("rota")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Keep what was captured fit to be sent to the process that reports: execnet refuses lone surrogates."""
    report: Any = yield
    report.sections = [(title, text.encode(errors="replace").decode()) for title, text in report.sections]
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests run against other servers than those of the Python packages."""
    options = ("embedded", "debian", "given")
    parser.addoption("--servers", choices=options, default="embedded", help="whose PostgreSQL and Redis the tests use")


@pytest.fixture(scope="session")
def embedded(request: pytest.FixtureRequest, servers_folder: Path) -> Iterator[Any]:
    """PostgreSQL and Redis as ``--servers`` says; by default those of ``core.testing``."""
    chosen = request.config.getoption("--servers")
    if chosen == "embedded":
        yield request.getfixturevalue("embedded")
        return
    with servers.running(chosen, servers_folder) as running:
        yield running
