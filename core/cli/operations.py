"""``rota operations``: lists the operations that change many runs in the background, and cancels them."""

from itertools import islice

import click

from core.cli import Group
from core.cli.actor import by_option
from core.cli.environment import ledger, looking
from core.cli.output import as_json, print_json, say
from core.cli.tables import Column, print_table
from core.ledger import history
from core.ledger.audit import Actor
from core.operations import plans
from core.operations.plans import Operation
from core.operations.wording import local, local_zone

#: How many of the items that were left out are listed without ``--all``.
FIRST = 20
#: The person who looks at operations. Everybody who may use the database may see all operations.
LOOKING = Actor("", via="cli")


@click.group(cls=Group, invoke_without_command=True)
@click.option(
    "--limit", "most", type=click.IntRange(1, 1000), default=20, show_default=True, help="List at most this many."
)
@as_json
@click.pass_context
def operations(ctx: click.Context, most: int, as_json: bool) -> None:
    """List the operations that change many runs or clean up Redis in the background, newest first.

    They were planned and confirmed over HTTP, or by `rota orphans clean`.

    \b
      rota operations
      rota operations show 12
      rota operations cancel 12
    """
    if ctx.invoked_subcommand is not None:
        return
    with looking() as engine, engine.connect() as connection:
        found = plans.listed(connection, LOOKING, limit=most).items
        zone = local_zone(history.now(connection))
    if as_json:
        print_json(found)
        return
    columns = (
        Column("id"),
        Column("action"),
        Column("state"),
        Column("of"),
        Column("changed"),
        Column("left out", rank=1),
        Column("by", rank=2),
        Column(f"confirmed ({zone})", rank=3),
    )
    print_table(columns, [row(each) for each in found], empty="no operations")


def row(found: Operation) -> tuple[str, ...]:
    """Return an operation as a row."""
    numbers = (str(found.total), str(found.changed), str(sum(found.left_out.values())))
    return (str(found.id), found.action, found.state, *numbers, found.confirmed_by, local(found.confirmed_at))


@operations.command()
@click.argument("operation_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@click.option("--all", "is_all", is_flag=True, help="List all items that were left out, and not only the first 20.")
@as_json
def show(operation_id: int, is_all: bool, as_json: bool) -> None:
    """Show the progress of an operation, and the first 20 of the items that it left out, with the reasons.

    \b
      rota operations show 12
      rota operations show 12 --all
    """
    with looking() as engine, engine.connect() as connection:
        found = plans.one(connection, operation_id, LOOKING)
        every = plans.every_left_out(connection, operation_id, LOOKING)
        left = list(every if is_all else islice(every, FIRST))
    if as_json:
        print_json(found)
        return
    say(f"{found.action} {found.total}: {found.state}, {found.changed} changed, {found.remaining} remaining")
    if found.ended_because or found.ended_by:
        say(f"ended: {found.ended_because or f'by {found.ended_by}'}")
    for reason, count in found.left_out.items():
        say(f"left out {count}: {reason}")
    for each in left:
        say(f"  {each.item} {each.reason}")
    if more := sum(found.left_out.values()) - len(left):
        say(f"  and {more} more: rota operations show {operation_id} --all")


@operations.command()
@click.argument("operation_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@by_option
def cancel(operation_id: int, by: Actor) -> None:
    """Cancel an operation. Items that it has changed stay changed, and the others are left as they are."""
    with ledger() as engine, engine.begin() as connection:
        found = plans.cancel(connection, operation_id, by)
    say(f"cancelled after {found.changed} of {found.total}")
