"""A fleet of real processes for each crash test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet, fleet


@pytest.fixture
def make_fleet(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Callable[..., Fleet]]:
    """Makes the test's fleet; options are Fleet's."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(fleet(tmp_path, postgres_url, redis_url, **options))
