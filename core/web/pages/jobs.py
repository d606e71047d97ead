"""Jobs: the list, and one job with its declaration, its newest runs, and the form that requests a run."""

import secrets
from typing import Annotated, Any

from fastapi import Query
from sqlalchemy import Connection
from starlette.responses import Response

from core.errors import BadArguments, NotFound
from core.jobs import arguments as declared
from core.jobs.registry import Registry
from core.ledger import history
from core.ledger import pauses as rows
from core.operations import access, jobs, listing, requests
from core.operations.access import View
from core.operations.runs import refuse_unknown
from core.operations.selection import Selection
from core.web.api.jobs import JobName
from core.web.api.ledger import Jobs, Ledger, Reading
from core.web.api.parameters import Body, Key, Name, Seen
from core.web.pages import arguments, forms
from core.web.pages import page as pages
from core.web.pages.forms import Form, Sent
from core.web.pages.page import Page, Shown

router = pages.router()

RUNS_SHOWN = 10


class Wanted(Body):
    """The key of the requested run, and what tells two requests of the same form apart."""

    key: Key = ""
    once: Name | None = None


@router.get("/jobs")
def listed(page: Shown, connection: Reading, registry: Jobs, seen: Seen) -> Response:
    """List the jobs that are loaded here."""
    found = jobs.listed(registry, rows.active(connection), history.now(connection))
    return page.shown("jobs.html", jobs=[job for job in found if seen.shows(job.name)])


@router.get("/jobs/{name}")
def one(
    name: JobName,
    page: Shown,
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    like: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> Response:
    """Show a job. With ``like``, the form has the key and the arguments of that run."""
    run = listing.details(connection, registry, like, seen) if like is not None else None
    if run is not None and run.job != name:
        raise NotFound(f"run {like} is a run of {run.job}, not of {name}")
    given = run.args if run is not None and isinstance(run.args, dict) else None
    return shown(page, connection, registry, seen, name, given=given, key=run.key if run is not None else "")


def shown(
    page: Page,
    connection: Connection,
    registry: Registry,
    seen: View,
    name: str,
    *,
    given: dict[str, Any] | None = None,
    key: str = "",
    wrong: str = "",
    sent: Sent | None = None,
) -> Response:
    """Return the page of a job. ``wrong`` says why the form that was ``sent`` is refused."""
    refuse_unknown(connection, registry, name)
    access.check_jobs(connection, page.caller, [name])
    job = registry.jobs.get(name)
    active, now = rows.active(connection), history.now(connection)
    return page.shown(
        "job.html",
        409 if wrong else 200,
        name=name,
        job=jobs.shape(registry, job, active, now) if job is not None else None,
        is_keyed=job is not None and job.keyed is not None,
        described=(job.function.__doc__ or "").strip() if job is not None else "",
        runs=listing.page(connection, registry, Selection(job=name), limit=RUNS_SHOWN, view=seen).items,
        zone=page.zone(name),
        fields=arguments.fields(declared.json_schema(job), given) if job is not None else [],
        key=key,
        wrong=wrong,
        sent=sent or {},
        once=secrets.token_hex(16),
    )


@router.post("/jobs/{name}/runs")
def request(name: JobName, page: Shown, engine: Ledger, registry: Jobs, form: Form) -> Response:
    """Request a run, and show it. If its arguments do not fit, show the form again."""
    wanted = forms.checked(Wanted, {field: forms.first(form, field) for field in Wanted.model_fields})
    found = arguments.fields(declared.json_schema(registry.job(name)))
    try:
        args = arguments.read(form, found)
        made = requests.request(engine, registry, name, page.caller, key=wanted.key, args=args, once=wanted.once)
    except BadArguments as error:
        with engine.connect() as connection:
            seen = access.view(connection, page.caller)
            return shown(page, connection, registry, seen, name, key=wanted.key, wrong=str(error), sent=form)
    held = " It waits for the end of a pause." if made.pauses else ""
    return page.back(page.place(f"/runs/{made.run_id}"), f"Run {made.run_id} of {name} is requested.{held}")
