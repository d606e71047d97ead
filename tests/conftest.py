"""The fixtures of ``core.testing``, and the option that chooses other servers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import servers

pytest_plugins = ["core.testing"]

# A slow example on a busy machine is not a failure.
hypothesis.settings.register_profile("rota", deadline=None)
hypothesis.settings.load_profile("rota")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Replace lone surrogates in captured output: execnet cannot send them to the process that reports."""
    report: Any = yield
    report.sections = [(title, text.encode(errors="replace").decode()) for title, text in report.sections]
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option to run the tests on other servers than those of the Python packages."""
    options = ("embedded", "debian", "given")
    parser.addoption("--servers", choices=options, default="embedded", help="whose PostgreSQL and Redis the tests use")


@pytest.fixture(scope="session")
def embedded(request: pytest.FixtureRequest, servers_folder: Path) -> Iterator[Any]:
    """Yield the PostgreSQL and the Redis that ``--servers`` names; by default those of ``core.testing``."""
    chosen = request.config.getoption("--servers")
    if chosen == "embedded":
        yield request.getfixturevalue("embedded")
        return
    with servers.running(chosen, servers_folder) as running:
        yield running
