"""Runs: the list with its filter, one run in full, and what people do with it."""

from typing import Annotated, Literal, get_args

from fastapi import Query
from starlette.responses import Response

from core.operations import listing, plans, why
from core.operations.listing import Details
from core.web.api import runs as api
from core.web.api.ledger import Jobs, Ledger, Reading
from core.web.api.parameters import CONDITIONS, Chosen, Limit, RunId, Seen, StateName
from core.web.api.runs import Reason
from core.web.pages import forms
from core.web.pages import page as pages
from core.web.pages.forms import Form
from core.web.pages.page import Page, Shown

router = pages.router()

Cursor = Annotated[str | None, Query(max_length=400)]
Deed = Literal["retry", "drop", "cancel"]
#: The sentence that the next page shows after each action.
DONE: dict[Deed, str] = {
    "retry": "Run {id} is retried: it waits for a worker.",
    "drop": "Run {id} is dropped.",
    "cancel": "Run {id} is cancelled.",
}


@router.get("/runs")
def listed(
    page: Shown,
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    chosen: Chosen,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """List runs, the newest first."""
    found = listing.page(connection, registry, chosen, limit=limit, cursor=cursor, view=seen)
    return page.shown(
        "runs.html",
        found=found,
        chosen=page.filter(*CONDITIONS, "limit"),
        states=get_args(StateName),
        is_first=cursor is None,
    )


@router.get("/runs/{run_id}")
def one(run_id: RunId, page: Shown, connection: Reading, registry: Jobs, seen: Seen) -> Response:
    """Show a run in full: its story first."""
    run = listing.details(connection, registry, run_id, seen)
    story = why.of_run(connection, registry, run_id, seen)
    return page.shown("run.html", run=run, story=story.answer, zone=page.zone(run.job), deeds=deeds(page, run))


def deeds(page: Page, run: Details) -> dict[Deed, bool]:
    """Return the actions that the person's role allows. For each, return whether the state of the run allows it too."""
    is_withdrawn = run.reason in {"dropped", "cancelled"}
    states = {deed: run.state in plans.STATES[deed] for deed in DONE}
    possible = {**states, "drop": states["drop"] and not is_withdrawn, "cancel": states["cancel"] and not run.cancelled}
    return {deed: possible[deed] for deed in DONE if page.may(deed)}


@router.post("/runs/{run_id}/{deed}")
def do(run_id: RunId, deed: Deed, page: Shown, engine: Ledger, registry: Jobs, form: Form) -> Response:
    """Retry, drop or cancel a run, and return to the page from which the form was sent."""
    if deed == "retry":
        api.retry(run_id, engine, registry, page.caller)
    elif deed == "drop":
        api.drop(run_id, engine, registry, page.caller)
    else:
        reason = forms.checked(Reason, {"reason": forms.first(form, "reason")})
        api.cancel(run_id, engine, registry, page.caller, reason)
    return page.back(forms.place(form), DONE[deed].format(id=run_id))
