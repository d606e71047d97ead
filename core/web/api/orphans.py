"""Routes for orphans, which are runs that ended because no process had their job, and for their adoption."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from core.operations import leftovers, orphans
from core.operations.json_shape import Shape
from core.operations.leftovers import Listed
from core.operations.orphans import Orphans
from core.web import service
from core.web.api.ledger import Jobs, Ledger, Reading
from core.web.api.parameters import Body, Name, Seen
from core.web.callers import Caller

router = APIRouter(tags=["Orphans"])


@router.get("/orphans/messages")
def messages(connection: Reading, request: Request, registry: Jobs, caller: Caller) -> Listed:
    """Return old messages and results in Redis that are of no use any more. The search is bounded."""
    return leftovers.visible(connection, registry, service.of(request).configured, caller)


class OfJob(Body):
    """The job whose orphans are adopted."""

    job: Name


class Adopted(Shape):
    """The number of runs that were adopted."""

    runs: int


@router.get("/orphans")
def listed(
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    job: Annotated[Name | None, Query()] = None,
    plugin: Annotated[Name | None, Query()] = None,
) -> Orphans:
    """Return the numbers of orphans, and the newest orphans."""
    return orphans.found(connection, registry, job=job, plugin=plugin, view=seen)


@router.post("/orphans/adopt")
def adopt(wanted: OfJob, engine: Ledger, registry: Jobs, caller: Caller) -> Adopted:
    """Adopt all orphans of a job that is back. Their former states are restored."""
    with engine.connect() as connection:
        (job,) = orphans.adoptable(connection, registry, job=wanted.job, plugin=None)
    return Adopted(runs=orphans.adopt(engine, job, caller))
