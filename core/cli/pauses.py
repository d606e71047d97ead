"""``rota pauses``: what is paused now."""

import click

from core.cli.output import as_json, print_json, print_table
from core.cli.surroundings import ledger
from core.ledger import history
from core.operations import pauses as operations
from core.operations.wording import local, local_zone


@click.command()
@as_json
def pauses(as_json: bool) -> None:
    """List the pauses that are active.

    \b
      rota pauses
      rota pauses --json | jq '.[].scope'
    """
    with ledger() as engine, engine.connect() as connection:
        found = operations.active(connection)
        now = history.now(connection)
    if as_json:
        print_json(found)
        return
    columns = ("what", "by", "since", "until", f"why (times in {local_zone(now)})")
    rows = [
        (each.scope, each.paused_by, local(each.paused_at), local(each.until, missing="resumed"), each.reason or "")
        for each in found
    ]
    print_table(columns, rows, empty="nothing is paused")
