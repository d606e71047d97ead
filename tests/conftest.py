"""The fixtures of ``core.testing``, and nothing that a plugin's own tests would not have."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest_plugins = ["core.testing"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Keep what was captured fit to be sent to the process that reports: execnet refuses lone surrogates."""
    report: Any = yield
    report.sections = [(title, text.encode(errors="replace").decode()) for title, text in report.sections]
    return report
