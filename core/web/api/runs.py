"""Routes for runs: lists, one run in full, its explanation, requests, retries, drops, cancels, and exports."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from pydantic import Field

from core.operations import bulk, listing, requests, why
from core.operations.bulk import Plan
from core.operations.json_shape import Shape
from core.operations.listing import Details, Page
from core.operations.runs import Run
from core.operations.selection import Selection
from core.operations.why import Story
from core.web.api.ledger import Jobs, Ledger, Reading
from core.web.api.parameters import Arguments, Body, Chosen, Key, Limit, Name, RunId, Seen, Words
from core.web.callers import Caller

router = APIRouter(tags=["Runs"])


class Wanted(Body):
    """The run to request."""

    job: Name
    key: Key = ""
    args: Arguments = Field(default_factory=dict)


class Requested(Shape):
    """The run that was requested. ``is_new`` is false if an earlier request with the same key and content exists."""

    id: int
    is_new: bool


class Reason(Body):
    """The reason for the action, for other people."""

    reason: Words | None = None


@router.get("/runs")
def listed(
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    chosen: Chosen,
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Page:
    """Return runs, the newest first: by id, or by time if `since` or `until` is given."""
    return listing.page(connection, registry, chosen, limit=limit, cursor=cursor, view=seen)


@router.get("/runs/{run_id}")
def details(run_id: RunId, connection: Reading, registry: Jobs, seen: Seen) -> Details:
    """Return a run in full, with its attempts and the last lines of their logs."""
    return listing.details(connection, registry, run_id, seen)


@router.get("/runs/{run_id}/why")
def story(run_id: RunId, connection: Reading, registry: Jobs, seen: Seen) -> Story:
    """Explain the outcome of a run, and the reason."""
    return why.of_run(connection, registry, run_id, seen)


@router.post("/runs", status_code=201)
def request(
    wanted: Wanted,
    engine: Ledger,
    registry: Jobs,
    caller: Caller,
    response: Response,
    once: Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)] = None,
) -> Requested:
    """Request a run of a job that is due now.

    With the same `Idempotency-Key`, the same request counts once within a day.
    """
    found = requests.request(engine, registry, wanted.job, caller, key=wanted.key, args=wanted.args, once=once)
    response.headers["Location"] = f"runs/{found.run_id}"
    return Requested(id=found.run_id, is_new=found.is_new)


@router.post("/runs/{run_id}/retry")
def retry(run_id: RunId, engine: Ledger, registry: Jobs, caller: Caller) -> Run:
    """Retry a dead run. It keeps its id and its attempts, and gets all its retries again."""
    with engine.connect() as connection:
        plan = bulk.plan_retry(connection, registry, Selection(ids=(run_id,)), caller)
    return done(engine, plan)


@router.post("/runs/{run_id}/drop")
def drop(run_id: RunId, engine: Ledger, registry: Jobs, caller: Caller) -> Run:
    """Drop a waiting or dead run. A dropped run is dead, and a retry by filter leaves it out."""
    with engine.connect() as connection:
        plan = bulk.plan_drop(connection, registry, Selection(ids=(run_id,)), caller)
    return done(engine, plan)


@router.post("/runs/{run_id}/cancel")
def cancel(run_id: RunId, engine: Ledger, registry: Jobs, caller: Caller, why: Reason | None = None) -> Run:
    """Cancel a waiting or running run. A running run can no longer commit, and ends when its function has returned."""
    with engine.connect() as connection:
        plan = bulk.plan_cancel(connection, registry, Selection(ids=(run_id,)), caller, why=why.reason if why else None)
    return done(engine, plan)


def done(engine: Ledger, plan: Plan) -> Run:
    """Carry out a plan for one run. Return the run in its new state. Raises SelectionError if it changed meanwhile."""
    bulk.carry_out_whole(engine, plan)
    with engine.connect() as connection:
        return bulk.first(connection, plan)[0]
