"""``rota retry``: retries dead runs."""

from typing import Any

import click

from core.cli import moments
from core.cli.actor import by_option
from core.cli.bulk import carry_out, doing
from core.cli.environment import ledger
from core.cli.output import as_json
from core.cli.selection import selecting, selection
from core.ledger.audit import Actor
from core.operations import bulk
from core.plugins import loading


@click.command()
@selecting
@doing
@by_option
@as_json
def retry(dry_run: bool, yes: bool, rate: float | None, by: Actor, as_json: bool, **chosen: Any) -> None:
    """Retry dead runs: runs with these IDs, or all that the options select.

    Each run has all its retries again, keeps its id and history, and runs even if it is late. Dropped and cancelled
    runs are left out, unless they are selected by id, by --reason dropped or by --reason cancelled. The jobs of the
    runs must be loaded here and in a live process.

    \b
      rota retry 4711
      rota retry --job close-day --since 24h --dry-run
      rota retry --error "connection refused" --rate 5 --yes
    """
    wanted = selection(**chosen)
    with ledger(statement_timeout_seconds=0) as engine:
        with moments.read(), engine.connect() as connection:
            plan = bulk.plan_retry(connection, loading.current(), wanted, by)
        carry_out(engine, plan, dry_run=dry_run, yes=yes, rate=rate, as_json=as_json)
