"""``rota jobs``: what there is to run, and when next. Needs no server and no setting."""

from typing import Any
from zoneinfo import ZoneInfo

import click

from core import plugins
from core.cli.output import as_json, local, local_zone, print_json, print_table, span
from core.clock import system_clock
from core.jobs import Job
from core.registry import Registry

SLOTS_SHOWN = 5


@click.command()
@as_json
def jobs(as_json: bool) -> None:
    """List the jobs of all loaded plugins, with their schedules and their next slots.

    \b
      rota jobs
      rota jobs --json | jq '.[] | select(.queue == "rota") | .next_slots[0]'
    """
    registry = plugins.current()
    if as_json:
        print_json([described(registry, job) for job in registry])
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
            job.description,
        )
        for job in registry
    ]
    print_table(columns, rows, empty="no plugin has a job")


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
