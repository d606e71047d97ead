"""``rota runs``: lists the runs in the ledger, the newest first, or shows one run in full."""

from collections.abc import Collection
from typing import Any

import click

from core.cli.environment import looking
from core.cli.moments import read
from core.cli.output import as_json, print_json
from core.cli.run_details import show
from core.cli.selection import ID, filtering
from core.cli.tables import Column, print_table
from core.ledger import history, pauses
from core.ledger.models import State
from core.ledger.pauses import Pause
from core.operations import listing
from core.operations import runs as operations
from core.operations.runs import Run
from core.operations.selection import Selection
from core.operations.wording import local, local_zone, span
from core.plugins import loading

DEFAULT_LIMIT = 50


@click.command()
@click.argument("run_id", required=False, type=ID, metavar="[ID]")
@as_json
@filtering
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only runs in this state.")
@click.option("--limit", type=click.IntRange(min=1), help=f"At most this many.  [default: {DEFAULT_LIMIT}]")
def runs(run_id: int | None, as_json: bool, limit: int | None, **conditions: Any) -> None:
    """List the runs in the ledger, newest first, or show the run with this ID in full.

    With --since or --until, runs are sorted by the time of their end. If a run has not ended, the time of its request
    counts instead. With an ID, the command shows the arguments, the times, the attempts with their errors, tracebacks
    and last log lines, the run that enqueued it, and the runs that it has enqueued.

    \b
      rota runs
      rota runs 4711
      rota runs --job close-day --limit 10
      rota runs --queue billing --since 2h --error "connection refused"
      rota runs --state dead --json | jq '.[].error'
    """
    if run_id is None:
        show_list(Selection(**conditions), limit or DEFAULT_LIMIT, as_json=as_json)
    elif limit is None and not any(conditions.values()):
        show_one(run_id, as_json=as_json)
    else:
        raise click.UsageError("give the id of a run, or select runs by options")


def show_list(chosen: Selection, limit: int, *, as_json: bool) -> None:
    """Print the newest of the selected runs."""
    with read(), looking() as engine, engine.connect() as connection:
        found = listing.newest(connection, loading.current(), chosen, limit=limit)
        now, paused = history.now(connection), pauses.active(connection)
    if as_json:
        print_json(found)
        return
    print_table(columns(local_zone(now)), [row(run, paused) for run in found], empty="no runs")


def show_one(run_id: int, *, as_json: bool) -> None:
    """Print one run in full."""
    with looking() as engine, engine.connect() as connection:
        found = listing.details(connection, loading.current(), run_id)
        now, paused = history.now(connection), pauses.active(connection)
    if as_json:
        print_json(found)
        return
    show(found, operations.waits_for(loading.current(), found, paused), now)


def columns(zone: str) -> list[Column]:
    """Return the columns of a table of runs, with times in ``zone``."""
    return [
        Column("id"),
        Column("job"),
        Column("key", rank=5, least=24),
        Column(f"slot ({zone})", rank=4),
        Column("state"),
        Column("attempt", rank=6),
        Column(f"started ({zone})", rank=2),
        Column("took", rank=3),
        Column("outcome", rank=1, least=16),
    ]


def row(run: Run, paused: Collection[Pause] = ()) -> tuple[str, ...]:
    """Return a run as a row of the table. ``paused`` are the active pauses."""
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
