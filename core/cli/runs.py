"""``rota runs``: what the ledger remembers, newest first."""

from collections.abc import Collection

import click

from core.cli.output import as_json, print_json, print_table
from core.cli.surroundings import ledger
from core.ledger import history, pauses
from core.ledger.models import State
from core.ledger.pauses import Pause
from core.operations import runs as operations
from core.operations.runs import Run
from core.operations.wording import local, local_zone, span
from core.plugins import loading


@click.command()
@as_json
@click.option("--job", metavar="JOB", help="Only of this job.")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
def runs(as_json: bool, job: str | None, state: str | None, limit: int) -> None:
    """List the runs in the ledger, newest first.

    \b
      rota runs
      rota runs --job close-day --limit 10
      rota runs --state dead --json | jq '.[].error'
    """
    with ledger() as engine, engine.connect() as connection:
        found = operations.newest(connection, loading.current(), job=job, state=state, limit=limit)
        now, paused = history.now(connection), pauses.active(connection)
    if as_json:
        print_json(found)
        return
    columns = ("id", "job", "key", "slot", "state", "attempt", "started", "took", "what came of it")
    print_table(columns, [row(run, paused) for run in found], caption=f"times in {local_zone(now)}", empty="no runs")


def row(run: Run, paused: Collection[Pause] = ()) -> tuple[str, ...]:
    """A run as a line of the table; ``paused`` are the pauses that are active."""
    took = span(run.finished_at - run.started_at) if run.started_at and run.finished_at else ""
    return (
        str(run.id),
        run.job,
        run.key,
        local(run.slot, missing="by request"),
        run.state,
        str(run.attempt),
        local(run.started_at),
        took,
        "; ".join(filter(None, (operations.outcome(run), *operations.waits_for(loading.current(), run, paused)))),
    )
