"""``rota drop``: drops waiting or dead runs. A dropped run is dead, and a retry by filter leaves it out."""

from typing import Any

import click

from core.cli import moments
from core.cli.actor import by_option
from core.cli.bulk import carry_out, doing
from core.cli.environment import ledger
from core.cli.output import as_json
from core.cli.selection import selecting, selection
from core.ledger import operations
from core.ledger.audit import Actor
from core.operations import bulk
from core.plugins import loading


@click.command()
@selecting
@click.option("--state", type=click.Choice([str(state) for state in operations.DROPPABLE]), help="Runs in this state.")
@doing
@by_option
@as_json
def drop(
    dry_run: bool, yes: bool, rate: float | None, by: Actor, as_json: bool, state: str | None, **chosen: Any
) -> None:
    """Drop waiting or dead runs, so that they never run: runs with these IDs, or all that the options select.

    A dropped run is dead with the reason "dropped", and a bulk retry leaves it out. A running run cannot be dropped; it
    ends at its time limit at the latest.

    \b
      rota drop 4711
      rota drop --job send-newsletter --state queued --dry-run
    """
    wanted = selection(**chosen, state=state)
    with ledger(statement_timeout_seconds=0) as engine:
        with moments.read(), engine.connect() as connection:
            plan = bulk.plan_drop(connection, loading.current(), wanted, by)
        carry_out(engine, plan, dry_run=dry_run, yes=yes, rate=rate, as_json=as_json)
