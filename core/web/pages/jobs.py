"""Jobs: the list, and one job with its declaration and its newest runs."""

from starlette.responses import Response

from core.ledger import history
from core.ledger import pauses as rows
from core.operations import access, jobs, listing
from core.operations.runs import refuse_unknown
from core.operations.selection import Selection
from core.web.api.jobs import JobName
from core.web.api.ledger import Jobs, Reading
from core.web.api.parameters import Seen
from core.web.pages import page as pages
from core.web.pages.page import Shown

router = pages.router()

RUNS_SHOWN = 10


@router.get("/jobs")
def listed(page: Shown, connection: Reading, registry: Jobs, seen: Seen) -> Response:
    """List the jobs that are loaded here."""
    found = jobs.listed(registry, rows.active(connection), history.now(connection))
    return page.shown("jobs.html", jobs=[job for job in found if seen.shows(job.name)])


@router.get("/jobs/{name}")
def one(name: JobName, page: Shown, connection: Reading, registry: Jobs, seen: Seen) -> Response:
    """Show a job. Of a job that only the ledger knows, its runs are shown."""
    refuse_unknown(connection, registry, name)
    access.check_jobs(connection, page.caller, [name])
    declared = registry.jobs.get(name)
    shape = None
    if declared is not None:
        shape = jobs.shape(registry, declared, rows.active(connection), history.now(connection))
    newest = listing.page(connection, registry, Selection(job=name), limit=RUNS_SHOWN, view=seen)
    described = (declared.function.__doc__ or "").strip() if declared is not None else ""
    return page.shown("job.html", name=name, job=shape, described=described, runs=newest.items, zone=page.zone(name))
