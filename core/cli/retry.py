"""``rota retry``: have dead runs tried again."""

from collections.abc import Sequence
from typing import Any

import click
from sqlalchemy import Connection

from core.cli.actor import by_option
from core.cli.bulk import Deed, doing, run_deed
from core.cli.orphans import refuse_unknown_to_the_fleet
from core.cli.output import as_json
from core.cli.selection import Options, selecting
from core.cli.surroundings import ledger
from core.ledger import operations
from core.ledger.audit import Actor
from core.plugins import loading


@click.command()
@selecting
@doing
@by_option
@as_json
def retry(dry_run: bool, yes: bool, rate: float | None, by: Actor, as_json: bool, **chosen: Any) -> None:
    """Have dead runs tried again: those with these IDs, or all that the options describe.

    Each has all its retries before it again, keeps its id and what is on record of it, and runs however late it is.
    What was dropped is left alone, unless it is named by id or by --reason dropped. Their jobs must be known here, and
    to the processes that are alive.

    \b
      rota retry 4711
      rota retry --job close-day --since 24h --dry-run
      rota retry --error "connection refused" --rate 5 --yes
    """
    options = Options(**chosen)
    options.require_one_way()
    with ledger(statement_timeout_seconds=0) as engine:
        with engine.connect() as connection:
            runs = options.runs(connection, operations.RETRIABLE)
            jobs = [loading.current().job(name) for name in sorted({run.job for run in runs})]
            refuse_unknown_to_the_fleet(connection, jobs)

        def act(connection: Connection, run_ids: Sequence[int]) -> int:
            return operations.retry(connection, run_ids, jobs, even_dropped=options.means_dropped)

        deed = Deed("retry", "retried", act, by, ", ".join(job.name for job in jobs), options.criteria)
        run_deed(engine, runs, deed, dry_run=dry_run, yes=yes, rate=rate, as_json=as_json)
