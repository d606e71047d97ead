"""Jobs: their schedules, next slots and pauses."""

from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from core.jobs import job as declared
from core.jobs.registry import Registry
from core.ledger import pauses as rows
from core.operations import scopes
from core.operations.json_shape import Shape
from core.operations.pauses import Pause

SLOTS_SHOWN = 5


class Job(Shape):
    """A job of a loaded plugin."""

    name: str
    plugin: str
    queue: str
    schedule: str | None
    timezone: str | None
    next_slots: list[str]
    max_retries: int
    retry_delay_seconds: float
    soft_limit_seconds: float
    hard_limit_seconds: float
    overlap: str
    priority: int
    misfire: str
    misfire_cap: int
    ledger: bool
    #: The pauses that cover the job; None if the ledger could not be read.
    pauses: list[Pause] | None


def listed(registry: Registry, active: Sequence[rows.Pause] | None, now: datetime) -> list[Job]:
    """Return every job. ``active`` are the active pauses, or None if they are not known."""
    return [shape(registry, job, active, now) for job in registry]


def shape(registry: Registry, job: declared.Job, active: Sequence[rows.Pause] | None, now: datetime) -> Job:
    """Return a job as JSON."""
    held = None if active is None else holding(registry, job, active)
    return Job(
        name=job.name,
        plugin=registry.owners[job.name].name,
        queue=job.queue,
        schedule=str(job.schedule) if job.schedule else None,
        timezone=job.schedule.timezone if job.schedule else None,
        next_slots=next_slots(job, now),
        max_retries=job.max_retries,
        retry_delay_seconds=job.retry_delay.total_seconds(),
        soft_limit_seconds=job.soft_limit.total_seconds(),
        hard_limit_seconds=job.hard_limit.total_seconds(),
        overlap=job.overlap,
        priority=job.priority,
        misfire=job.misfire,
        misfire_cap=job.misfire_cap,
        ledger=job.ledger,
        pauses=None if held is None else [Pause.model_validate(pause) for pause in held],
    )


def holding(registry: Registry, job: declared.Job, active: Sequence[rows.Pause]) -> list[rows.Pause]:
    """Return the ``active`` pauses that cover a job. No pause covers a job of the fast lane."""
    return rows.of_scopes(active, scopes.of_job(registry, job.name)) if job.ledger else []


def next_slots(job: declared.Job, now: datetime) -> list[str]:
    """Return the next five slots of the schedule, in the schedule's own time zone."""
    if job.schedule is None:
        return []
    zone = ZoneInfo(job.schedule.timezone or "UTC")
    slots = [job.schedule.next_after(now)]
    while len(slots) < SLOTS_SHOWN:
        slots.append(job.schedule.next_after(slots[-1]))
    return [slot.astimezone(zone).isoformat() for slot in slots]
