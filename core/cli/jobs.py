"""``rota jobs``: lists the jobs and their next slots. It needs servers and settings only to show pauses."""

import sys
from datetime import datetime, timedelta

import click

from core.cli import environment, job_statistics
from core.cli.output import as_json, print_json, warn
from core.cli.tables import Column, print_table
from core.clock import system_clock
from core.errors import RotaError, SettingsError
from core.jobs.job import Job
from core.ledger import pauses
from core.ledger.pauses import Pause
from core.operations import jobs as operations
from core.operations.pauses import in_words
from core.operations.wording import local, local_zone, span
from core.plugins import loading

#: On a terminal, the year of a slot is not shown if the slot is nearer than this.
WITHIN_THE_YEAR = timedelta(days=300)


@click.command()
@click.argument("name", required=False, metavar="[JOB]")
@click.option("--since", metavar="TIME", help="With a job: since when to count its runs.  [default: 24h]")
@as_json
def jobs(name: str | None, since: str | None, as_json: bool) -> None:
    """List the jobs of all loaded plugins, with their schedules, next slots and pauses.

    With a JOB, show how many of its runs ended how, and how long they took. Runs are counted every five minutes.

    \b
      rota jobs
      rota jobs close-day --since 7d
      rota jobs --json | jq '.[] | select(.queue == "rota") | .next_slots[0]'
    """
    if name is not None:
        job_statistics.show(name, since, as_json=as_json)
    elif since is not None:
        raise click.UsageError("--since needs a job")
    else:
        show_list(as_json=as_json)


def show_list(*, as_json: bool) -> None:
    """Print all jobs."""
    registry = loading.current()
    active, now = pauses_if_told(), system_clock()
    if as_json:
        print_json(operations.listed(registry, active, now))
        return
    columns = (
        Column("job"),
        Column("plugin", rank=5),
        Column("queue", rank=2),
        Column("schedule", rank=3),
        Column(f"next ({local_zone(now)})", rank=1),
        Column("retries", rank=7),
        Column("limit", rank=6),
        Column("what it does", rank=4, least=16),
    )
    rows = [
        (
            job.name,
            registry.owners[job.name].name,
            job.queue,
            rhythm(job),
            upcoming(job, now, is_paused=bool(operations.holding(registry, job, active or []))),
            str(job.max_retries),
            span(job.soft_limit),
            "; ".join(
                [*(in_words(pause) for pause in operations.holding(registry, job, active or [])), job.description]
            ),
        )
        for job in registry
    ]
    print_table(columns, rows, empty="no plugin has a job")


def rhythm(job: Job) -> str:
    """Return when a job runs, as a short text."""
    if job.keyed is not None:
        return "one for each key"  # ``rota schedules`` lists them
    return str(job.schedule or ("by hand or by event" if job.ledger else "by event"))


def upcoming(job: Job, now: datetime, *, is_paused: bool) -> str:
    """Return the time of a job's next run, as a short text, or the reason why there is none."""
    if is_paused:
        return "paused"
    if job.schedule is None:
        return "" if job.ledger else "fast lane"
    slot = job.schedule.next_after(now)
    is_brief = sys.stdout.isatty() and slot - now < WITHIN_THE_YEAR
    return local(slot)[len("2026-") :] if is_brief else local(slot)


def pauses_if_told() -> list[Pause] | None:
    """Return the active pauses, or None if they are not known.

    They are not known if the settings name no ledger, or if the ledger cannot be read. If it cannot be read, print a
    warning on stderr.
    """
    try:
        with environment.looking() as engine, engine.connect() as connection:
            return pauses.active(connection)
    except SettingsError:
        return None
    except RotaError as error:
        warn(f"the pauses are not known: {error}")
        return None
