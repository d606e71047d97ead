"""Failures: dead runs in groups of the same job and kind of error."""

from datetime import timedelta
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from core.operations import failures
from core.web.api.ledger import Jobs, Reading
from core.web.api.parameters import Seen
from core.web.pages import page as pages
from core.web.pages.page import Shown

router = pages.router()

SPANS = ((24, "24 hours"), (24 * 7, "7 days"), (24 * 30, "30 days"))


@router.get("/failures")
def listed(
    page: Shown,
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    hours: Annotated[int, Query(ge=1, le=24 * 366)] = 24 * 7,
) -> Response:
    """Show the groups of dead runs, the largest first."""
    found = failures.grouped(connection, registry, timedelta(hours=hours), seen)
    return page.shown("failures.html", found=found, hours=hours, spans=SPANS, fragment=failures.fragment)
