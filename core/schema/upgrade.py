"""Brings every plugin's tables up to date; the core's are those of the built-in plugin.

Each plugin has an Alembic history of its own, in a version table of its own. A plugin's migrations are one transaction:
all of them are there afterwards, or none. One migration runs at a time, by an advisory lock. One that waits for a table
gives up after two seconds and is tried again, since everybody else waits behind it (``core/schema/locks.py``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from core import database
from core.errors import NotMigrated, PluginError
from core.jobs.registry import Plugin, Registry
from core.ledger import audit
from core.ledger.audit import Actor
from core.schema import locks, whereabouts


@dataclass(frozen=True, slots=True)
class History:
    """How far a plugin's tables are."""

    plugin: str
    #: The revision the database is at; None: none yet.
    current: str | None
    #: The newest revision that is installed.
    head: str | None

    @property
    def is_current(self) -> bool:
        """Whether nothing remains to be done."""
        return self.current == self.head


def version_table(plugin: Plugin) -> str:
    """Where the database keeps a plugin's revision."""
    return f"rota_migrations_{plugin.name}"


def scripts(plugin: Plugin) -> ScriptDirectory:
    """A plugin's revisions. They need no ``env.py``."""
    folder = str(plugin.migrations)
    return ScriptDirectory(folder, version_locations=[folder])


def migrated_plugins(registry: Registry) -> list[Plugin]:
    """The plugins that have tables, the core first, since others may refer to nothing but it."""
    having = [plugin for plugin in registry.plugins if plugin.migrations and plugin.state == "loaded"]
    return sorted(having, key=lambda plugin: (plugin.name != "core", plugin.name))


def status(engine: Engine, registry: Registry) -> list[History]:
    """How far each plugin's tables are. Raises HiddenLedger where they cannot be seen."""
    with engine.connect() as connection:
        found = [history(connection, plugin) for plugin in migrated_plugins(registry)]
        if any(each.current is None for each in found):
            whereabouts.refuse_hidden(connection)
        return found


def history(connection: Connection, plugin: Plugin) -> History:
    """How far one plugin's tables are."""
    context = MigrationContext.configure(connection, opts={"version_table": version_table(plugin)})
    return History(plugin.name, context.get_current_revision(), scripts(plugin).get_current_head())


def require(engine: Engine, registry: Registry) -> None:
    """Raise NotMigrated unless every plugin's tables are up to date."""
    behind = [history.plugin for history in status(engine, registry) if not history.is_current]
    if behind:
        raise NotMigrated(f"the database is not migrated for {', '.join(behind)}: run `rota db upgrade`")


def upgrade(
    engine: Engine, registry: Registry, by: Actor | None = None, *, say: Callable[[str], None] = locks.silent
) -> Iterator[History]:
    """Bring each plugin's tables up to date; yield what was done, plugin by plugin.

    ``by`` is who asked for it, for the audit; None: a program did. ``say`` is told whose locks are waited for. Raises
    PluginError for a migration that fails, and LocksHeld for one that gets no locks; that plugin's tables are then as
    they were.
    """

    def bring(connection: Connection, plugin: Plugin) -> History:
        before = history(connection, plugin)
        if not before.is_current:
            upgrade_plugin(connection, plugin)
            if by is not None:
                audit.record(connection, by, "db upgrade", plugin.name, was=before.current, head=before.head)
        return before

    for plugin in migrated_plugins(registry):
        yield locks.patiently(engine, partial(bring, plugin=plugin), f"plugin {plugin.name!r}", say)


def upgrade_plugin(connection: Connection, plugin: Plugin) -> None:
    """Bring one plugin's tables up to date in the caller's transaction."""
    revisions = scripts(plugin)

    def to_head(revision: Any, _context: MigrationContext) -> Any:
        return revisions._upgrade_revs("head", revision)

    with explained(plugin), EnvironmentContext(Config(), revisions, fn=to_head) as environment:
        environment.configure(connection=connection, version_table=version_table(plugin))
        environment.run_migrations()


@contextmanager
def explained(plugin: Plugin) -> Iterator[None]:
    """Say whose migration it was that failed."""
    try:
        yield
    except Exception as error:
        message = f"plugin {plugin.name!r}: its migration failed, nothing of it was kept: {database.brief(error)}"
        raise PluginError(message) from error
