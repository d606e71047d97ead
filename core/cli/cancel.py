"""``rota cancel``: ends waiting runs, and stops running runs before they commit."""

from functools import partial
from typing import Any

import click

from core.cli import moments
from core.cli.actor import by_option
from core.cli.bulk import carry_out, doing
from core.cli.environment import ledger
from core.cli.output import as_json, say
from core.cli.selection import selecting, selection
from core.ledger import cancels
from core.ledger.audit import Actor
from core.operations import bulk
from core.plugins import loading


@click.command()
@partial(selecting, by_reason="--waits-for")
@click.option("--state", type=click.Choice([str(state) for state in cancels.CANCELLABLE]), help="Runs in this state.")
@click.option("--reason", "why", metavar="TEXT", help="Why, for other people.")
@doing
@by_option
@as_json
def cancel(
    dry_run: bool,
    yes: bool,
    rate: float | None,
    by: Actor,
    as_json: bool,
    state: str | None,
    why: str | None,
    **chosen: Any,
) -> None:
    """Cancel waiting or running runs: runs with these IDs, or all that the options select.

    A cancelled run is dead with the reason "cancelled", and a bulk retry leaves it out. A waiting run ends at once. A
    running run can commit nothing more: its job is interrupted, and the run ends when the job's function has returned.
    If the function does not return within 30 seconds, its process is replaced.

    \b
      rota cancel 4711 --reason "wrong list of customers"
      rota cancel --job send-newsletter --dry-run
    """
    wanted = selection(**chosen, state=state)
    with ledger(statement_timeout_seconds=0) as engine:
        with moments.read(), engine.connect() as connection:
            plan = bulk.plan_cancel(connection, loading.current(), wanted, by, why=why)
        carry_out(engine, plan, dry_run=dry_run, yes=yes, rate=rate, as_json=as_json)
        with engine.connect() as connection:
            leaving = bulk.leaving(connection, plan)
        if leaving and not as_json:
            say(f"{leaving} still running: they commit nothing more, and each ends when its function has returned")
