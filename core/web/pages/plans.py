"""Plans and operations: a plan is made by a form, shown, confirmed by its digest or a phrase, and carried out."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import RedirectResponse, Response

from core.operations import plans
from core.operations.plans import Operation
from core.web.api import plans as api
from core.web.api.ledger import Changing, Jobs, Ledger, Reading
from core.web.api.parameters import Limit
from core.web.api.plans import Confirming, NewPlan, PlanId
from core.web.pages import forms
from core.web.pages import page as pages
from core.web.pages.forms import Form, Sent
from core.web.pages.page import Shown

router = pages.router()

#: What each action does with the runs of a plan.
CONSEQUENCES: Mapping[str, str] = {
    "retry": "Each run is queued again with all its retries.",
    "drop": "Each run is given up for good: it is dead, and a retry by filter leaves it out.",
    "cancel": "Waiting runs do not start. Running runs can no longer commit: the work of their attempt is lost.",
    "adopt": "Each run returns to the state that it had.",
    "cleanup": "Each message or result is removed from Redis.",
}
#: The fields of a form that are not conditions, and what ``NewPlan`` calls them.
TOLD = {"action": "action", "rate": "rate", "full": "full", "why": "reason"}
#: The fields of a form that may have several values, and what ``Chosen`` calls them.
LISTS = {"ids": "ids", "arg": "args"}


@router.post("/plans")
def make(page: Shown, connection: Changing, registry: Jobs, form: Form) -> Response:
    """Make a plan of the runs that a form chooses, and show it. Nothing is changed yet."""
    wanted = forms.checked(NewPlan, given(form))
    plan = api.make(wanted, connection, page.request, registry, page.caller)
    return RedirectResponse(page.place(f"/plans/{plan.id}"), 303)


def given(form: Sent) -> dict[str, Any]:
    """Return the plan that a form asks for. Each field counts: the model refuses one that it does not know, or that has
    more values than it takes.
    """
    sent = {name: values if name in LISTS else alone(values) for name, values in form.items()}
    told = {field: sent.pop(name) for name, field in TOLD.items() if name in sent}
    return {**told, "select": {LISTS.get(name, name): value for name, value in sent.items()}}


def alone(values: list[str]) -> str | list[str]:
    """Return the only value, or all values, which a field with one value refuses."""
    return values[0] if len(values) == 1 else values


@router.get("/plans/{plan_id}")
def plan(plan_id: PlanId, page: Shown, connection: Reading, registry: Jobs) -> Response:
    """Show a plan: what it will change, and how to confirm it."""
    found = plans.shown(connection, registry, plan_id, page.caller)
    return page.shown("plan.html", plan=found, consequence=CONSEQUENCES[found.action], audited=plans.AUDITED)


@router.post("/plans/{plan_id}/execute")
def execute(plan_id: PlanId, page: Shown, engine: Ledger, form: Form) -> Response:
    """Confirm a plan, and show its progress."""
    sent = forms.checked(Confirming, {name: forms.first(form, name) for name in Confirming.model_fields})
    api.execute(plan_id, sent, engine, page.caller)
    return page.back(page.place(f"/operations/{plan_id}"), "The plan is confirmed: a worker carries it out.")


@router.get("/operations")
def listed(
    page: Shown,
    connection: Reading,
    limit: Limit = 50,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> Response:
    """List operations, the newest first."""
    found = plans.listed(connection, page.caller, limit=limit, before=before)
    return page.shown("operations.html", found=found, chosen=page.filter("limit"), is_first=before is None)


@router.get("/operations/{plan_id}")
def one(
    plan_id: PlanId, page: Shown, connection: Reading, after: Annotated[int, Query(ge=0, lt=2**31)] = 0
) -> Response:
    """Show an operation: its progress, and what it left out."""
    found = plans.one(connection, plan_id, page.caller)
    left_out = plans.left_out(connection, plan_id, page.caller, after=after)
    return page.shown(
        "operation.html",
        operation=found,
        left_out=left_out,
        is_moving=found.state == "running",
        may_cancel=may_cancel(page, found),
        may_go_on=found.state == "stopped" and page.may(plans.AUDITED[found.action]),
    )


def may_cancel(page: pages.Page, found: Operation) -> bool:
    """Return whether the person may cancel an operation that is not over."""
    is_open = found.state in {"running", "stopped"}
    return is_open and page.may("operations cancel") and page.may(plans.AUDITED[found.action])


@router.post("/operations/{plan_id}/cancel")
def cancel(plan_id: PlanId, page: Shown, connection: Changing) -> Response:
    """Cancel an operation, and show it."""
    found = plans.cancel(connection, plan_id, page.caller)
    said = f"Operation {plan_id} is cancelled: {found.changed} of {found.total} are changed, and stay changed."
    return page.back(page.place(f"/operations/{plan_id}"), said)
