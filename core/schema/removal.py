"""Removes the tables of a removed plugin. This is only done when a person asks for it.

If the plugin can still be imported, its migrations are downgraded. Otherwise, all tables, views, sequences, routines
and types whose names begin with the plugin's name are dropped, so that the plugin can be installed again. In both
cases, the removal is one transaction.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import pluggy
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from core.errors import PluginError, suggestion
from core.jobs import hookspecs
from core.jobs.registry import Plugin, Registry
from core.ledger import releases
from core.plugins import admission, loading
from core.schema import upgrade
from core.schema.owners import owner_of

VERSION_TABLE = "rota_migrations_"

TABLES = text("""
    SELECT found.relname AS name,
           CASE WHEN found.reltuples >= 0 THEN found.reltuples::bigint ELSE stat.n_live_tup END AS rows
    FROM pg_class AS found LEFT JOIN pg_stat_all_tables AS stat ON stat.relid = found.oid
    WHERE found.relnamespace = quote_ident(current_schema())::regnamespace AND found.relkind IN ('r', 'p')
      AND NOT found.relispartition
    ORDER BY found.relname
""")

#: The objects other than tables that migrations create, with the names that DROP needs.
OBJECTS = text("""
    SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'SEQUENCE' END AS kind,
           relname AS name, oid::regclass::text AS called
    FROM pg_class WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relkind IN ('v', 'm', 'S')
    UNION ALL SELECT 'ROUTINE', proname, oid::regprocedure::text
    FROM pg_proc WHERE pronamespace = quote_ident(current_schema())::regnamespace
    UNION ALL SELECT 'TYPE', typname, oid::regtype::text
    FROM pg_type WHERE typnamespace = quote_ident(current_schema())::regnamespace AND typtype IN ('e', 'd')
""")
#: Objects that depend on tables are dropped before the tables. Objects that tables depend on are dropped after the
#: tables.
BEFORE_TABLES = ("VIEW", "MATERIALIZED VIEW")
AFTER_TABLES = ("ROUTINE", "SEQUENCE", "TYPE")


@dataclass(frozen=True, slots=True)
class Table:
    """A table and its approximate number of rows. The number is None if PostgreSQL has never counted the rows."""

    name: str
    rows: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The tables and objects to drop for a plugin."""

    plugin: str
    tables: tuple[Table, ...]
    #: Whether the plugin's migrations are downgraded. If they are not, its tables are dropped by name.
    by_downgrade: bool
    #: The names of other plugins. A table belongs to the plugin with the longest name with which the table's name
    #: begins.
    others: frozenset[str] = frozenset()


def plan(connection: Connection, registry: Registry, name: str) -> Plan:
    """Plan the removal of the plugin ``name``. Raises PluginError if that is not allowed, or if it has no tables."""
    refuse_loaded(connection, registry, name)
    there = [Table(row.name, row.rows) for row in connection.execute(TABLES).all()]
    names = {table.name for table in there}
    version_table = VERSION_TABLE + name
    known = frozenset([*(plugin.name for plugin in registry.plugins), *migrated(names), *admission.RESERVED, name])
    going = [table for table in there if owner_of(table.name, known) == name or table.name == version_table]
    if not going:
        raise PluginError(f"plugin {name!r} has no tables here{suggestion(name, migrated(names))}")
    by_downgrade = version_table in names and importable(name) is not None
    return Plan(name, tuple(going), by_downgrade, known - {name})


def refuse_loaded(connection: Connection, registry: Registry, name: str) -> None:
    """Raise PluginError if this process or a live process has the plugin loaded, or may have it."""
    admission.refuse_bad_name(name)
    if name == loading.CORE or any(plugin.name == name and plugin.state == "loaded" for plugin in registry.plugins):
        raise PluginError(f"plugin {name!r} is loaded here: uninstall it, or name it in ROTA_DISABLED_PLUGINS")
    for process in releases.processes(connection):
        if process.plugins is None:
            raise PluginError(f"{process.kind} {process.name} does not say which plugins it has: stop it first")
        if name in process.plugins:
            raise PluginError(
                f"{process.kind} {process.name} has plugin {name!r} loaded: restart it without the plugin, or stop it"
            )


def migrated(tables: Iterable[str]) -> set[str]:
    """Return the plugins that have a version table among ``tables``."""
    return {table.removeprefix(VERSION_TABLE) for table in tables if table.startswith(VERSION_TABLE)}


def importable(name: str) -> Plugin | None:
    """Return the plugin, if it is installed and can be imported with its migrations, even if it is disabled."""
    points = [point for point in entry_points(group=loading.GROUP) if point.name == name]
    manager = pluggy.PluginManager(hookspecs.NAMESPACE)
    manager.add_hookspecs(hookspecs)
    for point in points:
        plugin = loading.isolate(manager, point, points)
        if plugin.migrations is not None and not plugin.error:
            return plugin
    return None


def carry_out(connection: Connection, registry: Registry, shown: Plan) -> None:
    """Carry out the plan ``shown`` in the caller's transaction. Raises PluginError if the plan is outdated.

    The caller gets the transaction from ``core.schema.locks.patiently``.
    """
    now = plan(connection, registry, shown.plugin)
    if {table.name for table in now.tables} != {table.name for table in shown.tables}:
        raise PluginError(f"the tables of plugin {shown.plugin!r} have changed since; try again")
    plugin = importable(shown.plugin) if now.by_downgrade else None
    if plugin is not None:
        downgrade(connection, plugin)
        drop_tables(connection, [VERSION_TABLE + shown.plugin])
    else:
        drop_objects(connection, now, BEFORE_TABLES)
        drop_tables(connection, [table.name for table in now.tables])
        drop_objects(connection, now, AFTER_TABLES)


def drop_tables(connection: Connection, names: Iterable[str]) -> None:
    """Drop tables. Raises DBAPIError if other objects refer to them."""
    quote = connection.dialect.identifier_preparer.quote
    connection.exec_driver_sql(f"DROP TABLE {', '.join(map(quote, names))}")


def drop_objects(connection: Connection, going: Plan, kinds: Iterable[str]) -> None:
    """Drop the plugin's objects of these kinds."""
    there = connection.execute(OBJECTS).all()
    known = {going.plugin, *going.others}
    for kind in kinds:
        called = [each.called for each in there if each.kind == kind and owner_of(each.name, known) == going.plugin]
        if called:
            connection.exec_driver_sql(f"DROP {kind} {', '.join(called)}")


def downgrade(connection: Connection, plugin: Plugin) -> None:
    """Downgrade all of a plugin's migrations in the caller's transaction."""
    revisions = upgrade.scripts(plugin)

    def to_base(revision: Any, _context: MigrationContext) -> Any:
        return revisions._downgrade_revs("base", revision)

    with upgrade.explained(plugin), EnvironmentContext(Config(), revisions, fn=to_base) as environment:
        environment.configure(connection=connection, version_table=upgrade.version_table(plugin))
        environment.run_migrations()
