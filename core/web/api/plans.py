"""Routes for plans of changes to many runs, and for the operations that carry them out."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from sqlalchemy.orm import Session

from core.operations import plans
from core.operations.plans import Action, LeftOutPage, Operation, OperationPage, Plan, Wanted
from core.operations.selection import Selection
from core.web import service
from core.web.api.ledger import Changing, Jobs, Ledger, Reading
from core.web.api.parameters import Argument, Body, Key, Limit, Name, StateName, Time, Words
from core.web.callers import Caller

router = APIRouter(tags=["Plans"])

PlanId = Annotated[int, Path(ge=1, lt=2**63)]
RunIds = Annotated[list[Annotated[int, Field(ge=1, lt=2**63)]], Field(max_length=1000)]


class Chosen(Body):
    """The runs to change: their ids, or conditions. A selection with neither is refused."""

    ids: RunIds = Field(default_factory=list)
    job: Name | None = None
    key: Key | None = None
    plugin: Name | None = None
    queue: Name | None = None
    state: StateName | None = None
    reason: Name | None = None
    error: Words | None = None
    since: Time | None = None
    until: Time | None = None
    #: Arguments, such as `customer:42`. All of them must fit.
    args: Annotated[list[Argument], Field(max_length=5)] = Field(default_factory=list)
    limit: Annotated[int, Field(ge=1, le=100_000)] | None = None

    def selection(self) -> Selection:
        """Return the selection as the operations have it."""
        return Selection(**{**self.model_dump(), "ids": tuple(self.ids), "args": tuple(self.args)})


class NewPlan(Body):
    """The plan to make. A clean-up of Redis (`cleanup`) takes no `select`; `full` is for clean-ups only."""

    action: Action
    select: Chosen = Field(default_factory=Chosen)
    #: The most runs, or messages and results in Redis, that are changed per second.
    rate: Annotated[float, Field(ge=plans.RATES[0], le=plans.RATES[1])] | None = None
    reason: Words | None = None
    full: bool = False


class Confirming(Body):
    """The confirmation of a plan: its digest, and the phrase that it asks for, if any."""

    digest: Annotated[str, Field(min_length=1, max_length=100)]
    phrase: Words | None = None


@router.post("/plans", status_code=201)
def make(wanted: NewPlan, connection: Changing, request: Request, registry: Jobs, caller: Caller) -> Plan:
    """Plan a change to many runs, or a clean-up of Redis. Nothing is changed until the plan is confirmed."""
    asked = Wanted(wanted.action, wanted.select.selection(), wanted.rate, wanted.reason, wanted.full)
    return plans.make(connection, registry, service.of(request).configured, asked, caller)


@router.get("/plans/{plan_id}")
def plan(plan_id: PlanId, connection: Reading, registry: Jobs, caller: Caller) -> Plan:
    """Return a plan, with the first of its runs in their present state."""
    return plans.shown(connection, registry, plan_id, caller)


@router.post("/plans/{plan_id}/execute", status_code=202)
def execute(plan_id: PlanId, sent: Confirming, engine: Ledger, caller: Caller) -> Operation:
    """Confirm a plan, so that a worker carries it out. A second confirmation changes nothing.

    If the operation was stopped, or its run was dropped or is dead, a confirmation lets the operation go on.
    """
    with Session(engine) as session, session.begin():
        return plans.execute(session, plan_id, caller, digest=sent.digest, typed=sent.phrase)


@router.get("/operations", tags=["Operations"])
def listed(
    connection: Reading,
    caller: Caller,
    limit: Limit = 50,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> OperationPage:
    """Return operations, the newest first."""
    return plans.listed(connection, caller, limit=limit, before=before)


@router.get("/operations/{plan_id}", tags=["Operations"])
def operation(plan_id: PlanId, connection: Reading, caller: Caller) -> Operation:
    """Return an operation: its progress, and the numbers of items that it left out, by reason."""
    return plans.one(connection, plan_id, caller)


@router.get("/operations/{plan_id}/left-out", tags=["Operations"])
def left_out(
    plan_id: PlanId, connection: Reading, caller: Caller, after: Annotated[int, Query(ge=0, lt=2**31)] = 0
) -> LeftOutPage:
    """Return the items (runs, or leftovers in Redis) that the operation left out, each with the reason."""
    return plans.left_out(connection, plan_id, caller, after=after)


@router.post("/operations/{plan_id}/cancel", tags=["Operations"])
def cancel(plan_id: PlanId, connection: Changing, caller: Caller) -> Operation:
    """Cancel an operation. Items that were changed stay changed, and the others are left as they are."""
    return plans.cancel(connection, plan_id, caller)
