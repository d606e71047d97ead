"""``rota workers``: lists the live processes with their runs, and the processes that have left."""

from datetime import datetime

import click

from core.cli.environment import looking
from core.cli.output import as_json, print_json, say
from core.cli.tables import Column, print_table
from core.ledger import history
from core.operations import workers as operations
from core.operations.wording import brief, local, local_zone, span
from core.operations.workers import AtWork, Left, Live
from core.plugins import loading


@click.command()
@as_json
def workers(as_json: bool) -> None:
    """List the live processes with the runs that each works on, and the processes that left in the last 24 hours.

    A process leaves because it was stopped, because it died, because its heartbeat was missing for longer than a lease,
    or because it lost PostgreSQL and came back as another process.

    \b
      rota workers
      rota workers --json | jq '.live[].runs[].job'
    """
    with looking() as engine, engine.connect() as connection:
        found, now = operations.listed(connection, loading.current()), history.now(connection)
    if as_json:
        print_json(found)
        return
    print_table(LIVE, [live(process, now) for process in found.live], empty="no process is alive")
    if any(process.runs for process in found.live):
        say("", "at work:")
        print_table(AT_WORK, [at_work(process, run, now) for process in found.live for run in process.runs])
    if found.left:
        say("", "left in the last 24 hours:")
        print_table(left_columns(local_zone(now)), [left(process) for process in found.left])


LIVE = [
    Column("process"),
    Column("kind", rank=2),
    Column("name"),
    Column("busy", rank=1),
    Column("up for", rank=4),
    Column("queues", rank=3, least=12),
]
AT_WORK = [
    Column("process"),
    Column("run"),
    Column("job"),
    Column("key", rank=3, least=12),
    Column("attempt", rank=4),
    Column("for", rank=1),
    Column("progress", rank=2, least=12),
]


def left_columns(zone: str) -> list[Column]:
    """Return the columns of the processes that have left, with times in ``zone``."""
    return [
        Column("process"),
        Column("kind", rank=3),
        Column("name"),
        Column(f"left ({zone})", rank=1),
        Column("why"),
        Column("was up for", rank=2),
    ]


def live(process: Live, now: datetime) -> tuple[str, ...]:
    """Return a live process as a row. ``busy`` is the number of its threads that work on a run."""
    busy = f"{len(process.runs)} of {process.threads}" if process.threads is not None else ""
    lived = span(now - process.started_at)
    return (str(process.id), process.kind, process.name, busy, lived, queues(process))


def queues(process: Live) -> str:
    """Return the queues of a process, each with the number of threads that are reserved for it."""
    return ", ".join(
        f"{queue} ({process.reserved[queue]} reserved)" if queue in process.reserved else queue
        for queue in process.queues
    )


def at_work(process: Live, run: AtWork, now: datetime) -> tuple[str, ...]:
    """Return a run of a live process as a row."""
    lasted = span(now - run.started_at)
    return (str(process.id), str(run.run), run.job, run.key, str(run.attempt), lasted, brief(run.progress))


def left(process: Left) -> tuple[str, ...]:
    """Return a process that has left as a row."""
    lived = span(process.left_at - process.started_at)
    return (str(process.id), process.kind, process.name, local(process.left_at), process.reason, lived)
