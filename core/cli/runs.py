"""``rota runs``: lists the runs in the ledger, newest first."""

from collections.abc import Collection

import click

from core.cli.environment import looking
from core.cli.output import as_json, print_json
from core.cli.tables import Column, print_table
from core.ledger import history, pauses
from core.ledger.models import State
from core.ledger.pauses import Pause
from core.operations import runs as operations
from core.operations.runs import Run
from core.operations.wording import local, local_zone, span
from core.plugins import loading


@click.command()
@as_json
@click.option("--job", metavar="JOB", help="Only runs of this job.")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only runs in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
def runs(as_json: bool, job: str | None, state: str | None, limit: int) -> None:
    """List the runs in the ledger, newest first.

    \b
      rota runs
      rota runs --job close-day --limit 10
      rota runs --state dead --json | jq '.[].error'
    """
    with looking() as engine, engine.connect() as connection:
        found = operations.newest(connection, loading.current(), job=job, state=state, limit=limit)
        now, paused = history.now(connection), pauses.active(connection)
    if as_json:
        print_json(found)
        return
    print_table(columns(local_zone(now)), [row(run, paused) for run in found], empty="no runs")


def columns(zone: str) -> list[Column]:
    """The columns of a table of runs, with times in ``zone``."""
    return [
        Column("id"),
        Column("job"),
        Column("key", rank=5, least=24),
        Column(f"slot ({zone})", rank=4),
        Column("state"),
        Column("attempt", rank=6),
        Column(f"started ({zone})", rank=2),
        Column("took", rank=3),
        Column("what came of it", rank=1, least=16),
    ]


def row(run: Run, paused: Collection[Pause] = ()) -> tuple[str, ...]:
    """A run as a row of the table; ``paused`` are the active pauses."""
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
