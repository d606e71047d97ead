"""``rota jobs``: what there is to run, and when next. Needs no server and no setting, but to tell what is paused."""

import click
from sqlalchemy.exc import DBAPIError

from core.cli import surroundings
from core.cli.output import as_json, print_json, print_table
from core.clock import system_clock
from core.errors import SettingsError
from core.ledger import pauses
from core.ledger.pauses import Pause
from core.operations import jobs as operations
from core.operations.pauses import in_words
from core.operations.wording import local, local_zone, span
from core.plugins import loading


@click.command()
@as_json
def jobs(as_json: bool) -> None:
    """List the jobs of all loaded plugins, with their schedules and their next slots, and what is paused.

    \b
      rota jobs
      rota jobs --json | jq '.[] | select(.queue == "rota") | .next_slots[0]'
    """
    registry = loading.current()
    active, now = pauses_if_told(), system_clock()
    if as_json:
        print_json(operations.listed(registry, active, now))
        return
    columns = ("job", "plugin", "queue", "schedule", f"next ({local_zone(now)})", "retries", "limit", "what it does")
    rows = [
        (
            job.name,
            registry.owners[job.name].name,
            job.queue,
            str(job.schedule or "by hand or by event"),
            local(job.schedule.next_after(now)) if job.schedule else "",
            str(job.max_retries),
            span(job.soft_limit),
            "; ".join(
                [*(in_words(pause) for pause in operations.holding(registry, job, active or [])), job.description]
            ),
        )
        for job in registry
    ]
    print_table(columns, rows, empty="no plugin has a job")


def pauses_if_told() -> list[Pause] | None:
    """The pauses that are active; None where no ledger is named, or it cannot be asked, which is said on stderr."""
    try:
        with surroundings.ledger() as engine, engine.connect() as connection:
            return pauses.active(connection)
    except SettingsError:
        return None
    except DBAPIError as error:
        click.echo(f"rota: what is paused is not known: {surroundings.explanation(error)}", err=True)
        return None
