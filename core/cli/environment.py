"""Finds the settings of a command, including the URLs that ``rota up`` wrote, and opens the ledger."""

import os
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sqlalchemy import Engine

from core import database, settings
from core.operations import connections
from core.settings import Settings

URLS = ("DATABASE_URL", "REDIS_URL")
#: The variables that ``rota up`` writes. In local mode it writes SCHEDULER_MODE instead of REDIS_URL.
LEFT = (*URLS, "SCHEDULER_MODE")
DATA_FOLDER = Path(".rota")
#: The file in the data folder to which ``rota up`` writes its URLs for commands in another terminal.
ENV_FILE = "env"
#: The time-out of a command's statements.
STATEMENT_TIMEOUT_SECONDS = 30
#: The time-out of ``rota check``'s statements, which are short.
CHECK_TIMEOUT_SECONDS = 5


def write_env(folder: Path, urls: dict[str, str]) -> Path:
    """Write ``urls`` to ``folder`` for other commands, readable only for this user."""
    path = folder / ENV_FILE
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.writelines(f"{name}={shlex.quote(url)}\n" for name, url in urls.items())
    return path


def read_env(folder: Path) -> dict[str, str]:
    """Return the URLs that ``rota up`` wrote to ``folder``, or nothing if the file is missing or other users can write
    it.
    """
    path = folder / ENV_FILE
    try:
        found = path.stat()
        if found.st_uid not in {0, os.geteuid()} or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return {}
        words = shlex.split(path.read_text())
    except (OSError, ValueError):
        return {}
    pairs = (word.partition("=") for word in words)
    return {name: value for name, _, value in pairs if name in LEFT}


def environment() -> dict[str, str]:
    """Return this process's environment with the variables that ``rota up`` wrote.

    If the environment itself names another server, return the environment without these variables.
    """
    left = read_env(DATA_FOLDER)
    given = {name: os.environ[name] for name in URLS if os.environ.get(name)}
    contradicted = any(left.get(name) != url for name, url in given.items())
    return {**os.environ, **({} if contradicted else left)}


def is_from_up() -> bool:
    """Return whether the URLs are those that ``rota up`` wrote in this folder."""
    left = read_env(DATA_FOLDER)
    return bool(left) and all(environment().get(name) == url for name, url in left.items())


def source() -> str:
    """Return the result of a successful check of the settings: ``valid``, or the file of ``rota up`` if the URLs are
    from it.
    """
    return f"those of {DATA_FOLDER / ENV_FILE}" if is_from_up() else "valid"


def configured() -> Settings:
    """Return the settings of this command. Raises SettingsError."""
    return settings.load(environment())


@contextmanager
def ledger(
    rights: Mapping[str, str] = database.RIGHTS, *, statement_timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS
) -> Iterator[Engine]:
    """Make an engine for one command, and close it afterwards. A time-out of 0 means no time-out.

    ``rights`` are the rights that the command needs. Raises the errors of ``connections.explained``.
    """
    with (
        connections.ledger(configured(), "rota-cli", statement_timeout_seconds) as engine,
        connections.explained(engine, advice(), rights),
    ):
        yield engine


def looking() -> AbstractContextManager[Engine]:
    """Return an engine for a command that only reads."""
    return ledger(database.RIGHTS_TO_LOOK)


def checked_ledger(configured: Settings) -> AbstractContextManager[Engine]:
    """Return an engine for ``rota check``."""
    return connections.ledger(configured, "rota-cli", CHECK_TIMEOUT_SECONDS)


def advice() -> str:
    """Return the advice if a server cannot be reached."""
    if is_from_up():
        return f"the server that {DATA_FOLDER / ENV_FILE} names is not running: start it with `rota up`"
    return "check that the server is running, and that DATABASE_URL and REDIS_URL are right"
