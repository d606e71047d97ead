"""Why a job did or did not run at a time: the answer, with a link that one can send, and the slots around it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Query
from sqlalchemy import Connection
from starlette.responses import Response

from core.jobs.registry import Registry
from core.operations import access, slots, why
from core.operations.slots import Slot
from core.operations.times import EARLIEST, LATEST
from core.operations.why import Explanation
from core.web.api.ledger import Jobs, Reading
from core.web.api.parameters import Key, Name, Seen, Time
from core.web.pages import page as pages
from core.web.pages.page import Shown

router = pages.router()

#: The slots around a time are searched for within each of these distances in turn, until there are enough slots.
AROUND = (timedelta(minutes=10), timedelta(hours=3), timedelta(days=2), timedelta(days=40))
ENOUGH = 5
ON_EACH_SIDE = 3


@router.get("/why")
def ask(
    page: Shown,
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    job: Annotated[Name | None, Query()] = None,
    at: Annotated[Time | None, Query()] = None,
    key: Annotated[Key, Query()] = "",
) -> Response:
    """Explain why a job did or did not run. Without a job and a time, show the form."""
    jobs = sorted(each.name for each in registry if seen.shows(each.name))
    if job is None or at is None:
        return page.shown("why.html", jobs=jobs, asked={"job": job or "", "key": key, "at": at or ""}, found=None)
    access.check_jobs(connection, page.caller, [job])
    found = why.ask(connection, registry, job, at=at, key=key, view=seen)
    return page.shown(
        "why.html",
        jobs=jobs,
        asked={"job": job, "key": key, "at": at},
        found=found,
        zone=page.zone(job),
        lasting=lasting(found),
        verdict=verdict(found),
        around=around(connection, registry, found),
    )


def lasting(found: Explanation) -> str:
    """Return the time of an answer as text that means the same for everybody and for ever."""
    at = (found.slot or found.at).astimezone(UTC)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}" if at.second else f"{at:%Y-%m-%dT%H:%MZ}"


def verdict(found: Explanation) -> tuple[str, str | None]:
    """Return the state that answers the question, with its reason."""
    if found.runs:
        return found.runs[0].state, found.runs[0].reason
    return ("not on record" if found.slot else "not due"), None


def around(connection: Connection, registry: Registry, found: Explanation) -> Sequence[Slot]:
    """Return the slots before and after the time of an answer."""
    at = found.slot or found.at
    near: Sequence[Slot] = []
    for distance in AROUND:
        near = slots_within(connection, registry, found, at - distance, at + distance)
        if len(near) >= ENOUGH:
            break
    before = [slot for slot in near if slot.slot < at]
    return [*before[-ON_EACH_SIDE:], *[slot for slot in near if slot.slot >= at][: ON_EACH_SIDE + 1]]


def slots_within(
    connection: Connection, registry: Registry, found: Explanation, after: datetime, before: datetime
) -> Sequence[Slot]:
    """Return the slots in a span, or none if the span is out of bounds."""
    if not EARLIEST < after < before < LATEST:
        return []
    return slots.listed(connection, registry, found.job, found.key, after, before).items
