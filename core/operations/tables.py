"""The tables of the core and of the plugins: shows their revisions, and drops the tables of a removed plugin."""

from collections.abc import Callable

from sqlalchemy import Connection, Engine

from core.jobs.registry import Registry
from core.ledger import audit
from core.ledger.audit import Actor
from core.operations import access
from core.operations.json_shape import Shape
from core.schema import locks, removal, upgrade
from core.schema.removal import Plan


class Tables(Shape):
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


def status(engine: Engine, registry: Registry) -> list[Tables]:
    """Return the revision of each plugin's tables."""
    return [Tables.model_validate(history) for history in upgrade.status(engine, registry)]


def drop(
    engine: Engine, registry: Registry, plan: Plan, actor: Actor, *, say: Callable[[str], None] = locks.silent
) -> None:
    """Carry out a plan of ``removal.plan``. Raises Forbidden or PluginError.

    Call ``say`` with the sessions that hold locks, while the removal waits for these locks.
    """
    access.check(actor, "db drop-plugin")

    def carry_out(connection: Connection) -> None:
        removal.carry_out(connection, registry, plan)
        tables = [table.name for table in plan.tables]
        audit.record(connection, actor, "db drop-plugin", plan.plugin, tables=tables)

    locks.patiently(engine, carry_out, f"plugin {plan.plugin!r}", say)
