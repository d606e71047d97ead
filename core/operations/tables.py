"""The tables of the core and of the plugins: how far they are, and dropping those of a plugin that was taken away."""

from collections.abc import Callable

from sqlalchemy import Connection, Engine

from core.jobs.registry import Registry
from core.ledger import audit
from core.ledger.audit import Actor
from core.operations.shape import Shape
from core.schema import locks, removal, upgrade
from core.schema.removal import Plan


class Tables(Shape):
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


def status(engine: Engine, registry: Registry) -> list[Tables]:
    """How far each plugin's tables are."""
    return [Tables.model_validate(history) for history in upgrade.status(engine, registry)]


def drop(
    engine: Engine, registry: Registry, plan: Plan, actor: Actor, *, say: Callable[[str], None] = locks.silent
) -> None:
    """Drop what is in a plan of ``removal.plan``; ``say`` is told whose locks are waited for. Raises PluginError."""

    def carry_out(connection: Connection) -> None:
        removal.carry_out(connection, registry, plan)
        tables = [table.name for table in plan.tables]
        audit.record(connection, actor, "db drop-plugin", plan.plugin, tables=tables)

    locks.patiently(engine, carry_out, f"plugin {plan.plugin!r}", say)
