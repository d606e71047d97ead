"""Lists, adds, changes, removes, pauses and resumes schedules made at run time. The audit records each change.

The entries in the audit do not contain the keys of schedules, since keys may be personal data. The log of changes does
contain them, since ``rota why`` needs them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row
from sqlalchemy.orm import Session

from core import key_schedules
from core.errors import ScheduleError
from core.jobs.keyed import KeySchedule
from core.jobs.registry import Registry
from core.key_schedules import First
from core.ledger import audit, history, key_listing, releases
from core.ledger import key_schedules as rows
from core.ledger.audit import Actor
from core.operations import access, pauses
from core.operations.json_shape import Instant, Shape
from core.operations.runs import refuse_unknown


class Schedule(Shape):
    """A schedule made at run time."""

    job: str
    key: str
    plugin: str
    schedule: str
    #: The seconds that are added to each slot of the schedule.
    phase: int
    #: The next slot of the schedule; None while it is paused, or if no process has its job.
    next_at: Instant | None
    priority: int | None
    version: int
    since: Instant | None
    stretch: int
    failures: int
    paused_at: Instant | None
    paused_until: Instant | None
    paused_by: str | None
    pause_reason: str | None
    changed_at: Instant
    changed_by: str
    #: Whether no live process has the schedule's job, and the job is not loaded here.
    is_orphaned: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """The filter for the schedules to list."""

    job: str | None = None
    key: str | None = None
    is_paused: bool = False
    is_backing_off: bool = False
    is_orphaned: bool = False
    after: str = ""
    limit: int = 50


def found(connection: Connection, registry: Registry, wanted: Wanted) -> list[Schedule]:
    """Return the schedules that meet the filter, sorted by job and key. Raises UnknownJob."""
    if wanted.job is not None and wanted.job not in key_listing.jobs(connection):
        refuse_unknown(connection, registry, wanted.job)
    gone = orphaned(connection, registry)
    listed = key_listing.listed(
        connection,
        jobs=None if wanted.job is None else [wanted.job],
        among=gone if wanted.is_orphaned else None,
        key=wanted.key,
        is_paused=wanted.is_paused,
        is_backing_off=wanted.is_backing_off,
        after=wanted.after,
        limit=wanted.limit,
    )
    return [shape(row, is_orphaned=row.job in gone) for row in listed]


def orphaned(connection: Connection, registry: Registry) -> set[str]:
    """Return the jobs that have schedules, but that no live process has, and that are not loaded here."""
    fleet = releases.fleet(connection)
    return {job for job in key_listing.jobs(connection) if job not in registry and not fleet.knows(job)}


def shape(row: Row[Any], *, is_orphaned: bool) -> Schedule:
    """Return a schedule as JSON."""
    known = key_schedules.scheduled(row)
    told = {name: getattr(known, name) for name in Schedule.model_fields if hasattr(known, name)}
    next_at = None if is_orphaned else known.next_at
    return Schedule.model_validate(
        {**told, "next_at": next_at, "plugin": row.plugin, "schedule": known.spec, "is_orphaned": is_orphaned}
    )


def add(
    engine: Engine, job: str, wanted: KeySchedule, actor: Actor, *, first: First = "spread"
) -> bool:  # fmt: skip
    """Give a key a schedule. Return whether that changed anything. Raises the errors of ``core.schedule``."""
    access.check(actor, "schedules add")
    with Session(engine) as session, session.begin():
        access.check_jobs(session.connection(), actor, [job])
        changed = key_schedules.give(session, job, wanted, first=first, by=actor.name)
        audit.record(session, actor, "schedules add", job, changed=changed)
        return changed


def remove(engine: Engine, job: str, key: str, actor: Actor) -> None:
    """Remove the schedule of a key. Raises ScheduleError if the key has no schedule."""
    access.check(actor, "schedules remove")
    with Session(engine) as session, session.begin():
        access.check_jobs(session.connection(), actor, [job])
        if not rows.remove(session, job, [key], by=actor.name):
            raise no_schedule(job, key)
        audit.record(session, actor, "schedules remove", job)


def pause(
    engine: Engine,
    job: str,
    key: str,
    actor: Actor,
    *,
    reason: str | None = None,
    lasting: timedelta | None = None,
    until: str | None = None,
) -> datetime | None:
    """Pause the schedule of a key, for the span ``lasting`` or ``until`` a local time. Return the end of the pause.

    Raises Forbidden or BadTime, or ScheduleError if the key has no schedule.
    """
    access.check(actor, "schedules pause")
    with Session(engine) as session, session.begin():
        access.check_jobs(session.connection(), actor, [job])
        end_at = pauses.end_of(history.now(session.connection()), lasting, until)
        if not rows.pause(session, job, key, by=actor.name, reason=reason, until=end_at):
            raise no_schedule(job, key)
        audit.record(session, actor, "schedules pause", job, until=end_at, reason=reason)
        return end_at


def resume(engine: Engine, job: str, key: str, actor: Actor) -> None:
    """End the pause of a key, and its back-off. Raises ScheduleError if it has neither."""
    access.check(actor, "schedules resume")
    with Session(engine) as session, session.begin():
        access.check_jobs(session.connection(), actor, [job])
        if not rows.resume(session, job, key, by=actor.name):
            raise ScheduleError(
                f"the schedule of job {job!r} for the key {key!r} is not paused and does not back off; "
                f"see `rota schedules --job {job}`"
            )
        audit.record(session, actor, "schedules resume", job)


def cleanable(connection: Connection, registry: Registry, job: str | None) -> Mapping[str, int]:
    """Return the number of schedules of each orphaned job, or only of ``job`` if it is given.

    Raises ScheduleError if ``job`` has no schedules, or if a live process or this process has the job.
    """
    gone = orphaned(connection, registry)
    if job is not None and job not in gone:
        raise ScheduleError(f"job {job!r} has no orphaned schedules: a live process has it, or it has no schedules")
    return key_listing.counts(connection, gone if job is None else {job})


def clean(engine: Engine, registry: Registry, jobs: Collection[str], actor: Actor) -> int:
    """Remove all schedules of each of ``jobs`` that is still orphaned. Return the number of removed schedules."""
    access.check(actor, "schedules clean")
    access.check_unlimited(actor, "a clean-up")
    removed = 0
    with Session(engine) as session, session.begin():
        for job in sorted(set(jobs) & orphaned(session.connection(), registry)):
            count = key_listing.remove_all(session.connection(), job, by=actor.name)
            audit.record(session, actor, "schedules clean", job, removed=count)
            removed += count
    return removed


def no_schedule(job: str, key: str) -> ScheduleError:
    return ScheduleError(f"job {job!r} has no schedule for the key {key!r}; see `rota schedules --job {job}`")
