"""What a command finds around it: the settings, the servers that ``rota up`` left word of, and the ledger."""

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
#: What ``rota up`` leaves; in local mode the mode, instead of a Redis.
LEFT = (*URLS, "SCHEDULER_MODE")
DATA_FOLDER = Path(".rota")
#: Where ``rota up`` leaves its URLs for commands in another terminal, inside its data folder.
ENV_FILE = "env"
#: A command does not wait longer than this for a statement.
STATEMENT_TIMEOUT_SECONDS = 30
#: The statements of ``rota check`` are short.
CHECK_TIMEOUT_SECONDS = 5


def write_env(folder: Path, urls: dict[str, str]) -> Path:
    """Leave ``urls`` in ``folder`` for other commands, readable for us alone."""
    path = folder / ENV_FILE
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.writelines(f"{name}={shlex.quote(url)}\n" for name, url in urls.items())
    return path


def read_env(folder: Path) -> dict[str, str]:
    """The URLs that ``rota up`` left in ``folder``; none if there is no such file, or others could have written it."""
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
    """This process's environment, with what ``rota up`` left in this folder if that contradicts nothing."""
    left = read_env(DATA_FOLDER)
    given = {name: os.environ[name] for name in URLS if os.environ.get(name)}
    contradicted = any(left.get(name) != url for name, url in given.items())
    return {**os.environ, **({} if contradicted else left)}


def is_from_up() -> bool:
    """Whether the URLs are those that ``rota up`` left in this folder."""
    left = read_env(DATA_FOLDER)
    return bool(left) and all(environment().get(name) == url for name, url in left.items())


def source() -> str:
    """Where the settings are from, in words."""
    return f"those of {DATA_FOLDER / ENV_FILE}" if is_from_up() else "valid"


def configured() -> Settings:
    """The settings of this command. Raises SettingsError."""
    return settings.load(environment())


@contextmanager
def ledger(
    rights: Mapping[str, str] = database.RIGHTS, *, statement_timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS
) -> Iterator[Engine]:
    """An engine for one command, closed afterwards; 0: its statements may take as long as they need.

    ``rights`` are those that the command takes. Raises what ``connections.explained`` raises.
    """
    with (
        connections.ledger(configured(), "rota-cli", statement_timeout_seconds) as engine,
        connections.explained(engine, advice(), rights),
    ):
        yield engine


def looking() -> AbstractContextManager[Engine]:
    """An engine for a command that only looks."""
    return ledger(database.RIGHTS_TO_LOOK)


def checked_ledger(configured: Settings) -> AbstractContextManager[Engine]:
    """An engine for ``rota check``."""
    return connections.ledger(configured, "rota-cli", CHECK_TIMEOUT_SECONDS)


def advice() -> str:
    """Where to look when a server cannot be reached."""
    if is_from_up():
        return f"{DATA_FOLDER / ENV_FILE} names it, but it does not run: start it with `rota up`"
    return "see that the server runs, and that DATABASE_URL and REDIS_URL are right"
