"""Functions of both ``rota up`` and ``rota worker``: they find the programs to start, and guard these programs."""

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import RotaError
from core.settings import Settings
from core.supervisor.guard import Guard

#: A worker process needs this many connections in addition to one per thread.
SPARE_CONNECTIONS = 2


@contextmanager
def guarded() -> Iterator[Guard]:
    """Yield a guard, and dismiss it when the block ends."""
    guard = Guard()
    try:
        yield guard
    finally:
        guard.dismiss()


def pool_size(threads: int) -> str:
    """Return a value of ROTA_DB_POOL_SIZE that is enough for a process with ``threads`` threads."""
    default = Settings.model_fields["db_pool_size"].default
    return str(max(default, threads + SPARE_CONNECTIONS))


def script(name: str) -> str:
    """Return the path of a command that was installed with Rota."""
    ours = Path(sysconfig.get_path("scripts")) / name
    found = str(ours) if ours.exists() else shutil.which(name)
    if found is None:
        raise RotaError(f"the command {name!r} is not installed beside {sys.executable}")
    return found
