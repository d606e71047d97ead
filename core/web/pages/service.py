"""Queues, workers, plugins, releases and the audit: what the service consists of, and what people did with it."""

from collections.abc import Mapping
from typing import Annotated, get_args

from fastapi import Query
from starlette.responses import Response

from core.ledger import audit as rows
from core.ledger import history
from core.operations import access, audit, limits, plugins, queues, releases, times, workers
from core.web.api.ledger import Jobs, Reading
from core.web.api.parameters import Limit, Name, Seen, Time
from core.web.pages import page as pages
from core.web.pages.page import Shown

router = pages.router()

LIMITS_SHOWN = 50


@router.get("/queues")
def of_queues(page: Shown, connection: Reading, registry: Jobs, seen: Seen) -> Response:
    """Show the waiting runs of each queue, and the limits of jobs."""
    return page.shown(
        "queues.html",
        now=history.now(connection),
        queues=queues.listed(connection, registry, seen),
        limits=limits.listed(connection, LIMITS_SHOWN) if page.sees_all else None,
    )


@router.get("/workers")
def of_workers(page: Shown, connection: Reading, registry: Jobs, seen: Seen) -> Response:
    """Show the live processes with their runs, and the processes that have left."""
    found = workers.listed(connection, registry, seen)
    return page.shown("workers.html", now=history.now(connection), found=found)


@router.get("/plugins")
def of_plugins(page: Shown, registry: Jobs) -> Response:
    """Show the installed plugins, loaded or not."""
    access.check_unlimited(page.caller, "the list of plugins")
    return page.shown("installed.html", plugins=plugins.listed(registry))


@router.get("/releases")
def of_releases(page: Shown, connection: Reading, registry: Jobs, limit: Limit = 50) -> Response:
    """Show the releases that have run, and how the code here differs from the last one."""
    access.check_unlimited(page.caller, "the list of releases")
    return page.shown(
        "releases.html",
        releases=releases.newest(connection, limit),
        difference=releases.compare(connection, registry),
    )


@router.get("/audit")
def of_audit(
    page: Shown,
    connection: Reading,
    actor: Annotated[Name | None, Query()] = None,
    action: Annotated[rows.Action | None, Query()] = None,
    since: Annotated[Time | None, Query()] = None,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    limit: Limit = 50,
) -> Response:
    """Show what people did, the newest first."""
    access.check_unlimited(page.caller, "the audit")
    after = times.past(since, history.now(connection), "since")
    found = audit.newest(connection, actor=actor, action=action, since=after, limit=limit, before=before)
    return page.shown(
        "audit.html",
        entries=found,
        chosen=page.filter("actor", "action", "since", "limit"),
        next=found[-1].id if len(found) == limit else None,
        is_first=before is None,
        actions=get_args(rows.Action),
        link=link,
    )


def link(details: Mapping[str, object]) -> str | None:
    """Return the path of the page of the run or the operation that an entry names."""
    for name, path in (("operation", "/operations"), ("run", "/runs")):
        if isinstance(found := details.get(name), int):
            return f"{path}/{found}"
    return None
