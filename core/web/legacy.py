"""The addresses of the systems that Rota replaces. They still work, give Rota's answers, and name the routes to call
instead.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from core.operations import bulk, listing, orphans, queues, reconcile, wanted_schedules, workers
from core.operations.json_shape import Shape
from core.operations.listing import Page
from core.operations.orphans import Orphans
from core.operations.queues import Queue
from core.operations.reconcile import Reconciled
from core.operations.runs import Run
from core.operations.selection import Selection
from core.operations.service_health import Health
from core.operations.workers import Workers
from core.web import health
from core.web.api.ledger import Changing, Jobs, Ledger, Reading
from core.web.api.parameters import Chosen, Limit, RunId, Seen
from core.web.api.runs import done as carried_out
from core.web.api.schedules import Synced
from core.web.callers import Caller
from core.web.problems import REFUSALS

#: When these addresses were deprecated, as RFC 9745 writes it: 2026-11-28.
SINCE = "@1795824000"
#: The plugin that replaces the old mail worker.
MAIL = "mail"


def instead(successor: str) -> Callable[[Request, Response], None]:
    """Return a dependency that says which route of the API to call instead."""

    def tell(request: Request, response: Response) -> None:
        response.headers["Deprecation"] = SINCE
        address = f"{request.scope['root_path']}/api/v1{successor.format(**request.path_params)}"
        response.headers["Link"] = f'<{address}>; rel="successor-version"'

    return tell


def of_queues(connection: Reading, registry: Jobs, seen: Seen) -> list[Queue]:
    """Return the queues that the caller may see."""
    return queues.listed(connection, registry, seen)


router = APIRouter(tags=["Old addresses"], deprecated=True, responses=REFUSALS)


class CacheStatus(Shape):
    """The health of the service, and the runs of each queue."""

    health: Health
    queues: list[Queue]


@router.get("/admin/celery/workers", dependencies=[Depends(instead("/workers"))])
@router.get("/admin/workers", dependencies=[Depends(instead("/workers"))], operation_id="admin_workers")
def of_workers(connection: Reading, registry: Jobs, seen: Seen) -> Workers:
    """Return the live processes. Call `GET /api/v1/workers` instead."""
    return workers.listed(connection, registry, seen)


@router.get("/admin/celery/tasks", dependencies=[Depends(instead("/runs"))])
def of_tasks(
    connection: Reading,
    registry: Jobs,
    seen: Seen,
    chosen: Chosen,
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Page:
    """Return runs. Call `GET /api/v1/runs` instead."""
    return listing.page(connection, registry, chosen, limit=limit, cursor=cursor, view=seen)


@router.post("/admin/celery/tasks/sync", dependencies=[Depends(instead("/reconcile"))])
def sync(connection: Changing, registry: Jobs, caller: Caller) -> Reconciled:
    """Let the dispatcher look at once. Call `POST /api/v1/reconcile` instead."""
    return reconcile.look_now(connection, registry, caller)


@router.post("/admin/celery/tasks/{run_id}/retry", dependencies=[Depends(instead("/runs/{run_id}/retry"))])
def retry(run_id: RunId, engine: Ledger, registry: Jobs, caller: Caller) -> Run:
    """Retry a dead run. Call `POST /api/v1/runs/{run_id}/retry` instead."""
    with engine.connect() as connection:
        plan = bulk.plan_retry(connection, registry, Selection(ids=(run_id,)), caller)
    return carried_out(engine, plan)


@router.post("/admin/email-worker/sync", dependencies=[Depends(instead("/schedules/sync"))])
def sync_mail(engine: Ledger, registry: Jobs, caller: Caller) -> list[Synced]:
    """Give the jobs of the plugin `mail` the schedules that its accounts want. Call `POST /api/v1/schedules/sync`."""
    done = wanted_schedules.sync_plugin(engine, registry, MAIL, caller)
    return [Synced.of(job, counts) for job, counts in done.items()]


@router.get("/api/v1/cache/status", dependencies=[Depends(instead("/queues"))])
async def of_cache(request: Request, found: Annotated[list[Queue], Depends(of_queues)], _caller: Caller) -> CacheStatus:
    """Return the health, and the numbers of runs of each queue. Call `GET /health` and `GET /api/v1/queues` instead."""
    return CacheStatus(health=await health.look(request), queues=found)


@router.get("/api/v1/cache/celery-tasks", dependencies=[Depends(instead("/orphans"))])
def of_orphans(connection: Reading, registry: Jobs, seen: Seen) -> Orphans:
    """Return the runs whose job no process had. Call `GET /api/v1/orphans` instead."""
    return orphans.found(connection, registry, view=seen)
