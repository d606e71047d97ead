"""Upgrades every plugin's tables. The core's own tables belong to the built-in plugin ``core``.

Each plugin has its own Alembic history and version table. A plugin's migrations are one transaction, so that either all
or none of them are applied. An advisory lock lets one upgrade run at a time. A migration that waits for a table gives
up after two seconds and is tried again, since all other sessions wait behind it (``core/schema/locks.py``).
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
    """The revision of a plugin's tables."""

    plugin: str
    #: The database's revision; None if the plugin has no tables yet.
    current: str | None
    #: The newest revision that is installed.
    head: str | None

    @property
    def is_current(self) -> bool:
        """Whether no migration is missing."""
        return self.current == self.head


def version_table(plugin: Plugin) -> str:
    """Return the name of the table that has a plugin's revision."""
    return f"rota_migrations_{plugin.name}"


def scripts(plugin: Plugin) -> ScriptDirectory:
    """Return a plugin's revisions. The plugin needs no ``env.py``."""
    folder = str(plugin.migrations)
    return ScriptDirectory(folder, version_locations=[folder])


def migrated_plugins(registry: Registry) -> list[Plugin]:
    """Return the plugins that have tables. The core comes first, since other plugins may refer to its tables."""
    having = [plugin for plugin in registry.plugins if plugin.migrations and plugin.state == "loaded"]
    return sorted(having, key=lambda plugin: (plugin.name != "core", plugin.name))


def status(engine: Engine, registry: Registry) -> list[History]:
    """Return the revision of each plugin's tables. Raises HiddenLedger if the role cannot see them."""
    with engine.connect() as connection:
        found = [history(connection, plugin) for plugin in migrated_plugins(registry)]
        if any(each.current is None for each in found):
            whereabouts.refuse_hidden(connection)
        return found


def history(connection: Connection, plugin: Plugin) -> History:
    """Return the revision of one plugin's tables."""
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
    """Upgrade each plugin's tables. Yield each plugin's history before its upgrade.

    ``by`` is the person for the audit; None for a program. ``say`` is called with the holders of locks. Raises
    PluginError for a migration that fails, and LocksHeld for a migration that cannot get its locks. The tables of that
    plugin are then unchanged.
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
    """Upgrade one plugin's tables in the caller's transaction."""
    revisions = scripts(plugin)

    def to_head(revision: Any, _context: MigrationContext) -> Any:
        return revisions._upgrade_revs("head", revision)

    with explained(plugin), EnvironmentContext(Config(), revisions, fn=to_head) as environment:
        environment.configure(connection=connection, version_table=version_table(plugin))
        environment.run_migrations()


@contextmanager
def explained(plugin: Plugin) -> Iterator[None]:
    """Add the plugin's name to an error of the plugin's migration."""
    try:
        yield
    except Exception as error:
        message = f"plugin {plugin.name!r}: its migration failed and was rolled back: {database.brief(error)}"
        raise PluginError(message) from error
