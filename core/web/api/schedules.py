"""Routes for schedules made at run time, of keys of jobs. Keys may have any characters, so they are never part of a
path.
"""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from core.key_schedules import Synced as Done
from core.operations import access, schedules, strips, wanted_schedules
from core.operations.json_shape import Shape
from core.operations.schedules import Schedule, Wanted
from core.operations.strip_windows import SpanName
from core.operations.strips import Strips
from core.web.api.ledger import Jobs, Ledger, Reading
from core.web.api.parameters import Body, Key, Limit, Name, Seen, Words
from core.web.callers import Caller

router = APIRouter(tags=["Schedules"])


class OfKey(Body):
    """The schedule of a key."""

    job: Name
    key: Key


class OfJob(Body):
    """The job whose schedules are synced."""

    job: Name


class Synced(Shape):
    """How many schedules of a job were added, changed and removed."""

    job: str
    added: int
    changed: int
    removed: int

    @classmethod
    def of(cls, job: str, done: Done) -> "Synced":
        """Return the outcome of a sync."""
        return cls(job=job, added=done.added, changed=done.changed, removed=done.removed)


class NewPause(OfKey):
    """The pause of a schedule. Without ``minutes`` it lasts until a person ends it."""

    reason: Words | None = None
    minutes: Annotated[int, Field(ge=1, le=366 * 24 * 60)] | None = None


@router.get("/schedules")
def listed(
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    job: Annotated[Name | None, Query()] = None,
    key: Annotated[Key | None, Query()] = None,
    paused: bool = False,
    backing_off: bool = False,
    orphaned: bool = False,
    after: Annotated[Key, Query(description="Only keys that come after this one.")] = "",
    limit: Limit = 50,
) -> list[Schedule]:
    """Return schedules made at run time, by job and key. `GET /jobs` returns the schedules that jobs declare."""
    wanted = Wanted(job, key, paused, backing_off, orphaned, after, limit)
    return [each for each in schedules.found(connection, registry, wanted) if seen.shows(each.job)]


@router.get("/schedules/strips")
def drawn(
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    caller: Caller,
    span: SpanName = "24h",
    job: Annotated[Name | None, Query(description="Only the schedules of this job.")] = None,
    key: Annotated[Key | None, Query(description="Only the schedule of this key; needs `job`.")] = None,
) -> Strips:
    """Return, for each schedule, what became of its slots and why, in cells; neighbours alike are one entry.

    In the span of 24 hours, slots that are at least 10 minutes apart have cells of their own, and others have bins of
    15 minutes. In 7 days a bin is an hour, in 90 days a day in UTC.
    """
    if job is None or key is None:
        return strips.board(connection, registry, span, view=seen, job=job).shape()
    access.check_jobs(connection, caller, [job])
    return strips.of_key(connection, registry, span, job, key, view=seen).shape()


@router.post("/schedules/pause", status_code=204)
def pause(wanted: NewPause, engine: Ledger, caller: Caller) -> None:
    """Pause the schedule of a key."""
    lasting = timedelta(minutes=wanted.minutes) if wanted.minutes is not None else None
    schedules.pause(engine, wanted.job, wanted.key, caller, reason=wanted.reason, lasting=lasting)


@router.post("/schedules/resume", status_code=204)
def resume(wanted: OfKey, engine: Ledger, caller: Caller) -> None:
    """End the pause of a key's schedule, and its back-off."""
    schedules.resume(engine, wanted.job, wanted.key, caller)


@router.post("/schedules/sync")
def sync(wanted: OfJob, engine: Ledger, registry: Jobs, caller: Caller) -> Synced:
    """Give a job the schedules that its plugin wants for its keys. For admins."""
    return Synced.of(wanted.job, wanted_schedules.sync(engine, registry, wanted.job, caller))
