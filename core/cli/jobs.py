"""``rota jobs``: what there is to run, and when next. Needs no server and no setting, but to tell what is paused."""

from typing import Any
from zoneinfo import ZoneInfo

import click
from sqlalchemy.exc import DBAPIError

from core.cli import pauses as told
from core.cli import surroundings
from core.cli.output import as_json, local, local_zone, print_json, print_table, span
from core.clock import system_clock
from core.errors import SettingsError
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.ledger import pauses
from core.ledger.pauses import Pause
from core.plugins import loading

SLOTS_SHOWN = 5


@click.command()
@as_json
def jobs(as_json: bool) -> None:
    """List the jobs of all loaded plugins, with their schedules and their next slots, and what is paused.

    \b
      rota jobs
      rota jobs --json | jq '.[] | select(.queue == "rota") | .next_slots[0]'
    """
    registry = loading.current()
    active = pauses_if_told()
    if as_json:
        print_json([described(registry, job) | {"pauses": shown(registry, job, active)} for job in registry])
        return
    now = system_clock()
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
            "; ".join([*(told.in_words(pause) for pause in holding(registry, job, active or [])), job.description]),
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


def holding(registry: Registry, job: Job, active: list[Pause]) -> list[Pause]:
    """The pauses that hold a job, which those of the fast lane do not mind."""
    return pauses.of_scopes(active, registry.scopes[job.name]) if job.ledger else []


def shown(registry: Registry, job: Job, active: list[Pause] | None) -> list[dict[str, Any]] | None:
    """The pauses of a job as JSON tells them; None: not known."""
    return None if active is None else [told.described(pause) for pause in holding(registry, job, active)]


def described(registry: Registry, job: Job) -> dict[str, Any]:
    """A job as JSON tells it; its names are a promise."""
    return {
        "name": job.name,
        "plugin": registry.owners[job.name].name,
        "queue": job.queue,
        "schedule": str(job.schedule) if job.schedule else None,
        "timezone": job.schedule.timezone if job.schedule else None,
        "next_slots": next_slots(job),
        "max_retries": job.max_retries,
        "retry_delay_seconds": job.retry_delay.total_seconds(),
        "soft_limit_seconds": job.soft_limit.total_seconds(),
        "hard_limit_seconds": job.hard_limit.total_seconds(),
        "overlap": job.overlap,
        "misfire": job.misfire,
        "misfire_cap": job.misfire_cap,
        "ledger": job.ledger,
    }


def next_slots(job: Job) -> list[str]:
    """The next five slots in the schedule's own zone."""
    if job.schedule is None:
        return []
    zone = ZoneInfo(job.schedule.timezone or "UTC")
    slots = [job.schedule.next_after(system_clock())]
    while len(slots) < SLOTS_SHOWN:
        slots.append(job.schedule.next_after(slots[-1]))
    return [slot.astimezone(zone).isoformat() for slot in slots]
