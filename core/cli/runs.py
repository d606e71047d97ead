"""``rota runs``: what the ledger remembers, newest first."""

from collections.abc import Collection
from typing import Any

import click
from sqlalchemy import Connection

from core.cli.output import as_json, local, local_zone, print_json, print_table, span
from core.cli.pauses import in_words
from core.cli.surroundings import ledger
from core.errors import UnknownJob, suggestion
from core.jobs.registry import EVERYTHING
from core.ledger import history, pauses
from core.ledger.models import WAITING, State
from core.ledger.pauses import Pause
from core.plugins import loading

FIELDS = (
    "id",
    "job",
    "key",
    "slot",
    "state",
    "reason",
    "attempt",
    "queued_at",
    "started_at",
    "finished_at",
    "result",
    "error",
    "worker",
)


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
        if job is not None:
            refuse_unknown(connection, job)
        found = history.newest(connection, job=job, state=state, limit=limit)
        now, paused = history.now(connection), pauses.active(connection)
    if as_json:
        print_json([described(run) for run in found])
        return
    columns = ("id", "job", "key", "slot", "state", "attempt", "started", "took", "what came of it")
    print_table(columns, [row(run, paused) for run in found], caption=f"times in {local_zone(now)}", empty="no runs")


def refuse_unknown(connection: Connection, job: str) -> None:
    """Raise UnknownJob for a name that neither a plugin nor the ledger knows; unloaded jobs have history, too."""
    known = loading.current().jobs
    if job in known:
        return
    seen = history.jobs_seen(connection)
    if job not in seen:
        nearest = suggestion(job, {*known, *seen}) or "; `rota jobs` lists them"
        raise UnknownJob(f"unknown job {job!r}{nearest}")


def described(run: history.Run) -> dict[str, Any]:
    """A run as JSON tells it; its names are a promise."""
    return {field: getattr(run, field) for field in FIELDS} | {"progress": run.progress}


def row(run: history.Run, paused: Collection[Pause] = ()) -> tuple[str, ...]:
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
        "; ".join(filter(None, (outcome(run), *waits_for(run, paused)))),
    )


def waits_for(run: history.Run, paused: Collection[Pause]) -> list[str]:
    """The pauses that hold a run which waits."""
    if run.state not in WAITING:
        return []
    scopes = loading.current().scopes.get(run.job, (EVERYTHING, f"job:{run.job}"))
    return [in_words(pause) for pause in pauses.of_scopes(paused, scopes)]


def outcome(run: history.Run) -> str:
    """The most telling thing about a run, in a few words."""
    if run.state == State.SUCCEEDED:
        return brief(run.result)
    if run.state == State.RUNNING:
        return brief(run.progress)
    return ": ".join(part for part in (run.reason, (run.error or "").partition("\n")[0]) if part)


def brief(value: Any, *, longest: int = 120) -> str:
    """A result or progress in a few words."""
    if value is None:
        return ""
    words = ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)
    return words if len(words) <= longest else f"{words[: longest - 1]}…"
