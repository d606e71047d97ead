"""``rota pauses``: lists the active pauses."""

import click

from core.cli.environment import looking
from core.cli.output import as_json, print_json
from core.cli.tables import Column, print_table
from core.ledger import history
from core.operations import pauses as operations
from core.operations.wording import local, local_zone


@click.command()
@as_json
def pauses(as_json: bool) -> None:
    """List the active pauses.

    \b
      rota pauses
      rota pauses --json | jq '.[].scope'
    """
    with looking() as engine, engine.connect() as connection:
        found = operations.active(connection)
        now = history.now(connection)
    if as_json:
        print_json(found)
        return
    zone = local_zone(now)
    columns = (
        Column("what"),
        Column("by", rank=2),
        Column(f"since ({zone})", rank=4),
        Column(f"until ({zone})", rank=1),
        Column("why", rank=3, least=16),
    )
    rows = [
        (each.scope, each.paused_by, local(each.paused_at), local(each.until, missing="resumed"), each.reason or "")
        for each in found
    ]
    print_table(columns, rows, empty="nothing is paused")
