"""Routes that list, begin and end pauses."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from core.jobs.registry import EVERYTHING
from core.operations import pauses, scopes
from core.operations.json_shape import Shape
from core.operations.pauses import Pause
from core.web.api.ledger import Changing, Jobs, Reading
from core.web.api.parameters import Body, Seen, Words
from core.web.callers import Caller

router = APIRouter(tags=["Pauses"])

SCOPE = r"^(everything|(job|queue|plugin):[^\x00-\x1f]{1,200})$"
Scope = Annotated[str, Field(pattern=SCOPE, max_length=210, description="everything, job:…, queue:… or plugin:…")]


class NewPause(Body):
    """The pause to begin. Without ``minutes`` it lasts until a person ends it."""

    scope: Scope
    reason: Words | None = None
    minutes: Annotated[int, Field(ge=1, le=366 * 24 * 60)] | None = None


class Paused(Shape):
    """A new pause, and the jobs of its scope that it does not cover, since they are on the fast lane."""

    pause: Pause
    on_fast_lane: list[str]


@router.get("/pauses")
def listed(connection: Reading, registry: Jobs, seen: Seen) -> list[Pause]:
    """Return the active pauses that pause a job which the caller may see, the oldest first."""
    found = pauses.active(connection)
    if seen.jobs is None:
        return found
    theirs = set().union(*(scopes.of_job(registry, job) for job in seen.jobs), {EVERYTHING})
    return [pause for pause in found if pause.scope in theirs]


@router.post("/pauses", status_code=201)
def begin(wanted: NewPause, connection: Changing, registry: Jobs, caller: Caller) -> Paused:
    """Stop starting the jobs of a scope for a while. Slots that come due are skipped, and requested runs wait."""
    lasting = timedelta(minutes=wanted.minutes) if wanted.minutes is not None else None
    begun = pauses.begin(connection, registry, wanted.scope, caller, reason=wanted.reason, lasting=lasting)
    return Paused(pause=begun.pause, on_fast_lane=begun.on_fast_lane)


@router.delete("/pauses", status_code=204)
def end(scope: Annotated[Scope, Query()], connection: Changing, registry: Jobs, caller: Caller) -> None:
    """End the pause of a scope."""
    pauses.end(connection, registry, scope, caller)
