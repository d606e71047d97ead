"""Finds a run by its id, or jobs by a part of their names."""

from typing import Annotated

from fastapi import Query
from starlette.responses import RedirectResponse, Response

from core.web.api.ledger import Jobs
from core.web.api.parameters import Name, Seen
from core.web.pages import page as pages
from core.web.pages.page import Shown

router = pages.router()


@router.get("/find")
def find(page: Shown, registry: Jobs, seen: Seen, q: Annotated[Name | None, Query()] = None) -> Response:
    """Lead to the run or the job that ``q`` names, or show the jobs whose names contain it."""
    wanted = (q or "").strip().lower()
    if wanted.isascii() and wanted.isdigit() and 0 < int(wanted) < 2**63:
        return RedirectResponse(page.place(f"/runs/{int(wanted)}"), 303)
    names = [job.name for job in registry if seen.shows(job.name) and wanted in job.name]
    if wanted in names or len(names) == 1:
        return RedirectResponse(page.place(f"/jobs/{wanted if wanted in names else names[0]}"), 303)
    return page.shown("found.html", q=q or "", names=names)
