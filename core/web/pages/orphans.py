"""Orphans: runs that ended because no process had their job, and the form that adopts them."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from core.errors import LeftoversError
from core.operations import leftovers, orphans
from core.web import service
from core.web.api import orphans as api
from core.web.api.ledger import Jobs, Ledger, Reading
from core.web.api.orphans import OfJob
from core.web.api.parameters import Name, Seen
from core.web.pages import forms
from core.web.pages import page as pages
from core.web.pages.forms import Form
from core.web.pages.page import Shown

router = pages.router()


@router.get("/orphans")
def listed(
    page: Shown, connection: Reading, registry: Jobs, seen: Seen, job: Annotated[Name | None, Query()] = None
) -> Response:
    """Show the numbers of orphans, and the newest orphans."""
    found = orphans.found(connection, registry, job=job, view=seen)
    return page.shown("orphans.html", found=found, known=registry.jobs, job=job)


@router.get("/orphans/messages")
def messages(page: Shown, connection: Reading, registry: Jobs) -> Response:
    """Show old messages and results in Redis that are of no use any more. The search is bounded."""
    configured = service.of(page.request).configured
    try:
        found = leftovers.visible(connection, registry, configured, page.caller)
    except LeftoversError as error:
        return page.shown("leftovers.html", found=None, why=str(error))
    return page.shown("leftovers.html", found=found, why="")


@router.post("/orphans/adopt")
def adopt(page: Shown, engine: Ledger, registry: Jobs, form: Form) -> Response:
    """Adopt all orphans of a job, and return to the page from which the form was sent."""
    wanted = forms.checked(OfJob, {"job": forms.first(form, "job")})
    adopted = api.adopt(wanted, engine, registry, page.caller)
    return page.back(forms.place(form), f"{adopted.runs} runs of {wanted.job} are adopted.")
