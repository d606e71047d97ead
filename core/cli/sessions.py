"""``rota sessions``: lists the browsers that are logged in, and ends their sessions."""

import click

from core.cli import Group
from core.cli.actor import by_option
from core.cli.environment import ledger, looking
from core.cli.output import as_json, print_json, say
from core.cli.tables import Column, print_table
from core.ledger import history
from core.ledger.audit import Actor
from core.operations import sessions as operations
from core.operations.sessions import MOST, BrowserSession
from core.operations.wording import local, local_zone


@click.group(cls=Group, invoke_without_command=True)
@as_json
@click.pass_context
def sessions(ctx: click.Context, /, as_json: bool) -> None:
    """List the browsers that are logged in to the HTTP service, the newest first, up to 1000.

    \b
      rota sessions
      rota sessions end 12
    """
    if ctx.invoked_subcommand is not None:
        return
    with looking() as engine, engine.connect() as connection:
        found = operations.listed(connection, Actor("", "cli"), limit=MOST)
        zone = local_zone(history.now(connection))
    if as_json:
        print_json(found)
        return
    columns = (
        Column("id"),
        Column("name"),
        Column("role", rank=1),
        Column(f"logged in ({zone})", rank=3),
        Column("by", rank=4),
        Column("last request", rank=2),
        Column("until", rank=5),
    )
    print_table(columns, [row(each) for each in found], empty="no browser is logged in")


def row(found: BrowserSession) -> tuple[str, ...]:
    """Return a session as a row."""
    times = (local(found.created_at), found.created_by, local(found.used_at, missing="none"), local(found.expires_at))
    return (str(found.id), found.name, found.role, *times)


@sessions.command()
@click.argument("session_ids", metavar="ID...", type=click.IntRange(1, 2**63 - 1), nargs=-1, required=True)
@by_option
def end(session_ids: tuple[int, ...], by: Actor) -> None:
    """End sessions by their ids. Their browsers must log in again. Either all of them are ended, or none.

    \b
      rota sessions end 12
    """
    with ledger() as engine, engine.begin() as connection:
        for session_id in dict.fromkeys(session_ids):
            operations.end(connection, session_id, by)
    say(f"ended {', '.join(map(str, dict.fromkeys(session_ids)))}")
