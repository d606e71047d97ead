"""``rota db``: upgrades the tables of the core and of all plugins, shows their revisions, and drops plugins' tables."""

from typing import TYPE_CHECKING

import click

from core.cli import Group
from core.cli.actor import by_option
from core.cli.output import as_json, print_json, say, warn
from core.cli.tables import Column, print_table
from core.ledger.audit import Actor

if TYPE_CHECKING:
    from core.schema import upgrade as migrate


COLUMNS = (Column("plugin"), Column("is at", rank=2), Column("newest", rank=1), Column("state"))


@click.group(cls=Group)
def db() -> None:
    """Upgrade the database's tables, or show their revisions."""


@db.command()
@by_option
def upgrade(by: Actor) -> None:
    """Upgrade the tables of every plugin.

    The migrations of each plugin run in one transaction. Of two upgrades at the same time, one waits for the other. A
    migration that needs a locked table waits two seconds for the lock, lets other transactions run, and tries again.
    After about a minute, the command gives up and names the processes that hold the locks.
    """
    from core.cli.environment import ledger
    from core.plugins import loading
    from core.schema import upgrade as migrate

    registry = loading.current()
    with ledger(statement_timeout_seconds=0) as engine:
        for before in migrate.upgrade(engine, registry, by, say=warn):
            say(f"{before.plugin}: {describe(before)}")


@db.command()
@as_json
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show the revision of every plugin's tables. Exit status 1 if an upgrade is needed."""
    from core.cli.environment import looking
    from core.operations import tables
    from core.plugins import loading

    with looking() as engine:
        histories = tables.status(engine, loading.current())
    if as_json:
        print_json(histories)
    else:
        rows = [
            (h.plugin, h.current or "none", h.head or "none", "up to date" if h.is_current else "behind")
            for h in histories
        ]
        print_table(COLUMNS, rows)
    if not all(history.is_current for history in histories):
        if not as_json:
            say("run `rota db upgrade`")
        ctx.exit(1)


@db.command("drop-plugin")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@by_option
def drop_plugin(name: str, yes: bool, by: Actor) -> None:
    """Drop the tables and all data of the plugin NAME, which was uninstalled or disabled.

    This is refused while the plugin is loaded here or in a live process. If the plugin can still be imported, its
    migrations are downgraded. Otherwise all tables whose names begin with its name are dropped. All of this is one
    transaction.

    \b
      rota db drop-plugin billing
    """
    from core.cli.confirmation import confirm
    from core.cli.environment import ledger
    from core.operations import tables
    from core.plugins import loading
    from core.schema import removal

    registry = loading.current()
    with ledger(statement_timeout_seconds=0) as engine:
        with engine.begin() as connection:
            shown = removal.plan(connection, registry, name)
        rows = [(table.name, "unknown" if table.rows is None else f"about {table.rows}") for table in shown.tables]
        print_table((Column("table"), Column("rows")), rows)
        by_name = "the tables are found by their names, since the plugin cannot be imported"
        say("the tables are dropped by downgrading its migrations" if shown.by_downgrade else by_name)
        confirm(f"Drop these {len(rows)} tables and all their data?", is_given=yes, word=name)
        tables.drop(engine, registry, shown, by, say=warn)
    say(f"dropped the tables of {name}")


def describe(before: "migrate.History") -> str:
    """Return what an upgrade did to a plugin's tables. ``before`` has the revisions before the upgrade."""
    if before.is_current:
        return f"was up to date at {before.head}"
    return f"upgraded from {before.current or 'nothing'} to {before.head}"
