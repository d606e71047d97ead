"""Routes for jobs, their arguments and their slots, and for why a job did or did not run."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from core.jobs import arguments
from core.ledger import history
from core.ledger import pauses as rows
from core.operations import access, jobs, slots, statistics, why
from core.operations.jobs import Job
from core.operations.slots import Slots
from core.operations.statistics import Statistics
from core.operations.why import Explanation
from core.web.api.ledger import Jobs, Reading
from core.web.api.parameters import Key, Name, Seen, Time
from core.web.callers import Caller

router = APIRouter(tags=["Jobs"])

JobName = Annotated[Name, Path()]


@router.get("/jobs")
def listed(connection: Reading, registry: Jobs, seen: Seen) -> list[Job]:
    """Return the jobs that are loaded here, with their schedules, next slots and pauses."""
    found = jobs.listed(registry, rows.active(connection), history.now(connection))
    return [job for job in found if seen.shows(job.name)]


@router.get("/jobs/{name}")
def one(name: JobName, connection: Reading, registry: Jobs, caller: Caller) -> Job:
    """Return the job with this name."""
    declared = registry.job(name)
    access.check_jobs(connection, caller, [name])
    return jobs.shape(registry, declared, rows.active(connection), history.now(connection))


@router.get("/jobs/{name}/arguments")
def schema(name: JobName, connection: Reading, registry: Jobs, caller: Caller) -> dict[str, Any]:
    """Return the JSON Schema of a job's arguments. Secret arguments are write-only, and have no default."""
    declared = registry.job(name)
    access.check_jobs(connection, caller, [name])
    return arguments.json_schema(declared)


@router.get("/jobs/{name}/statistics")
def counted(
    name: JobName,
    connection: Reading,
    registry: Jobs,
    caller: Caller,
    since: Annotated[Time, Query(description="2h (ago), 03:00 or 2026-11-23T03:00+00:00.")] = statistics.BY_DEFAULT,
    until: Annotated[Time | None, Query()] = None,
) -> Statistics:
    """Return how many runs of a job ended how, and how long they took, in at most 100 steps of time."""
    access.check_jobs(connection, caller, [name])
    return statistics.of_job(connection, registry, name, since=since, until=until)


@router.get("/jobs/{name}/slots", tags=["Schedules"])
def of_job(
    name: JobName,
    connection: Reading,
    registry: Jobs,
    caller: Caller,
    after: Annotated[datetime, Query(alias="from")],
    before: Annotated[datetime, Query(alias="to")],
    key: Annotated[Key, Query()] = "",
) -> Slots:
    """Return at most 1,000 slots of a job, or of one of its keys, in a span of up to a year."""
    access.check_jobs(connection, caller, [name])
    return slots.listed(connection, registry, name, key, after, before)


@router.get("/why")
def ask(
    connection: Reading,
    registry: Jobs,
    caller: Caller,
    seen: Seen,
    job: Annotated[Name, Query()],
    at: Annotated[Time, Query(description="03:00 or 2026-11-23T03:00, in the job's zone; or with an offset.")],
    key: Annotated[Key, Query()] = "",
) -> Explanation:
    """Explain why a job did or did not run at a time."""
    access.check_jobs(connection, caller, [job])
    return why.ask(connection, registry, job, at=at, key=key, view=seen)
