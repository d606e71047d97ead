"""``rota db``: the tables of the core and of every plugin."""

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
    """Bring the database's tables up to date, or say how far they are."""


@db.command()
@by_option
def upgrade(by: Actor) -> None:
    """Bring the tables of every plugin up to date.

    Each plugin's migrations are one transaction; two of these at once wait for one another. One that needs a table on
    which others work waits two seconds, lets them pass, and tries again, for about a minute; then it says who they are.
    """
    from core.cli.surroundings import ledger
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
    """Say how far the tables of every plugin are; exit status 1 if something is to be done."""
    from core.cli.surroundings import looking
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
@click.option("--yes", is_flag=True, help="Do not ask.")
@by_option
def drop_plugin(name: str, yes: bool, by: Actor) -> None:
    """Drop the tables and all data of the plugin NAME, which has been taken away.

    Refused while it is loaded here or by a process that is alive. A plugin that can still be imported takes its own
    migrations back; of any other, all tables go whose names begin with its name. It is one transaction.

    \b
      rota db drop-plugin billing
    """
    from core.cli.confirmation import confirm
    from core.cli.surroundings import ledger
    from core.operations import tables
    from core.plugins import loading
    from core.schema import removal

    registry = loading.current()
    with ledger(statement_timeout_seconds=0) as engine:
        with engine.begin() as connection:
            shown = removal.plan(connection, registry, name)
        rows = [(table.name, "unknown" if table.rows is None else f"about {table.rows}") for table in shown.tables]
        print_table((Column("table"), Column("rows")), rows)
        say("by taking its migrations back" if shown.by_downgrade else "by name, since it cannot be imported")
        confirm(f"Drop these {len(rows)} tables and all that is in them?", is_given=yes, word=name)
        tables.drop(engine, registry, shown, by, say=warn)
    say(f"dropped the tables of {name}")


def describe(before: "migrate.History") -> str:
    """What an upgrade did, from what there was before it."""
    if before.is_current:
        return f"was up to date at {before.head}"
    return f"brought from {before.current or 'nothing'} to {before.head}"
