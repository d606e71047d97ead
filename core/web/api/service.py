"""Routes for the parts of the service: queues, workers, limits, releases, plugins, the audit, and failures."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from core.ledger import history
from core.ledger.audit import Action
from core.operations import access, audit, failures, limits, plugins, queues, reconcile, releases, times, workers
from core.operations.audit import Entry
from core.operations.failures import Failures
from core.operations.limits import LimitUse
from core.operations.plugins import Plugin
from core.operations.queues import Queue
from core.operations.reconcile import Reconciled
from core.operations.releases import Difference, ReleaseSeen
from core.operations.workers import Workers
from core.web.api.ledger import Changing, Jobs, Reading
from core.web.api.parameters import Limit, Name, Seen, Time
from core.web.callers import Caller

router = APIRouter()


@router.get("/queues", tags=["Queues"])
def of_queues(connection: Reading, registry: Jobs, seen: Seen) -> list[Queue]:
    """Return the queues, each with its numbers of waiting runs, running runs and workers."""
    return queues.listed(connection, registry, seen)


@router.get("/workers", tags=["Workers"])
def of_workers(connection: Reading, registry: Jobs, seen: Seen) -> Workers:
    """Return the live processes with their runs, and the processes that left in the last 24 hours."""
    return workers.listed(connection, registry, seen)


@router.get("/failures", tags=["Failures"])
def of_failures(
    connection: Reading, registry: Jobs, seen: Seen, hours: Annotated[int, Query(ge=1, le=24 * 366)] = 24 * 7
) -> Failures:
    """Return dead runs in groups of the same job and kind of error, the largest first."""
    return failures.grouped(connection, registry, timedelta(hours=hours), seen)


@router.get("/limits", tags=["Limits"])
def of_limits(connection: Reading, caller: Caller, limit: Limit = 50) -> list[LimitUse]:
    """Return the limits of jobs with their use. The limits with the most waiting runs come first."""
    access.check_unlimited(caller, "the list of limits")
    return limits.listed(connection, limit)


@router.get("/releases", tags=["Releases"])
def of_releases(connection: Reading, caller: Caller, limit: Limit = 50) -> list[ReleaseSeen]:
    """Return the releases that have run, the newest first."""
    access.check_unlimited(caller, "the list of releases")
    return releases.newest(connection, limit)


@router.get("/releases/difference", tags=["Releases"])
def difference(connection: Reading, registry: Jobs, caller: Caller) -> Difference:
    """Return the differences between the jobs that are loaded here and the jobs of the last release that ran."""
    access.check_unlimited(caller, "the difference of releases")
    return releases.compare(connection, registry)


@router.get("/plugins", tags=["Plugins"])
def of_plugins(registry: Jobs, caller: Caller) -> list[Plugin]:
    """Return the plugins that are installed here, loaded or not."""
    access.check_unlimited(caller, "the list of plugins")
    return plugins.listed(registry)


@router.get("/audit", tags=["Audit"])
def of_audit(
    connection: Reading,
    caller: Caller,
    actor: Annotated[Name | None, Query()] = None,
    action: Annotated[Action | None, Query()] = None,
    since: Annotated[Time | None, Query()] = None,
    before: Annotated[int | None, Query(ge=1, lt=2**63, description="Only entries with smaller ids.")] = None,
    limit: Limit = 50,
) -> list[Entry]:
    """Return the actions of people, the newest first."""
    access.check_unlimited(caller, "the audit")
    after = times.past(since, history.now(connection), "since")
    return audit.newest(connection, actor=actor, action=action, since=after, limit=limit, before=before)


@router.post("/reconcile", tags=["Queues"])
def look_now(connection: Changing, registry: Jobs, caller: Caller) -> Reconciled:
    """Let the leading dispatcher look for due runs at once."""
    return reconcile.look_now(connection, registry, caller)
