"""Lists runs by the filter of ``rota retry`` and ``rota drop``, and shows one run in full."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from core.errors import UnknownRun
from core.jobs.registry import Registry
from core.ledger import attempts, history, listing, releases, search
from core.ledger.listing import MOST_CHILDREN
from core.ledger.models import State
from core.ledger.operations import Filter
from core.operations import cursors, limits, searched
from core.operations.access import WHOLE, View
from core.operations.json_shape import Instant, Shape
from core.operations.limits import LimitUse
from core.operations.redaction import Redactor, redactor
from core.operations.runs import Run, shapes
from core.operations.selection import Selection


class Attempt(Shape):
    """An attempt that did not succeed, or that came after such an attempt."""

    attempt: int
    #: ``failed``, ``crashed``, ``released``, ``later``, ``cancelled`` or ``succeeded``.
    outcome: str
    reason: str | None
    worker: str | None
    started_at: Instant | None
    ended_at: Instant
    error: str | None
    traceback: str | None
    #: The last lines that the attempt has logged; their times are in UTC.
    log: str | None


class Relative(Shape):
    """A run that has enqueued the shown run, or was enqueued by it."""

    id: int
    job: str
    key: str
    state: str


class Details(Run):
    """A run in full."""

    queue: str
    priority: int
    args: Any
    due_at: Instant
    expires_at: Instant | None
    subject: str | None
    limits: list[str] | None
    #: The limit that was full when a worker last tried to start the run.
    waits_for: str | None
    #: The limit ``waits_for`` with its use now.
    limit: LimitUse | None
    #: The number of attempts that failed.
    failures: int
    #: The number of attempts during which the worker process died.
    crashes: int
    attempts: list[Attempt]
    #: The run that enqueued the shown run, unless its row is deleted, or the person may not see its job.
    enqueued_by: Relative | None
    #: The runs that the shown run has enqueued and that the person may see, the newest first, and whether there are
    #: more than these.
    enqueued: list[Relative]
    has_enqueued_more: bool


#: The columns that are shown only for a run in full, and not in a list.
OF_ROW = ("queue", "priority", "args", "due_at", "expires_at", "subject", "limits", "waits_for", "failures", "crashes")


class Page(Shape):
    """A page of runs, the newest first."""

    items: list[Run]
    #: The ``cursor`` of the next page; null on the last page.
    next: str | None
    #: A search by an error, an argument, a reason or a queue looks at a bounded number of runs. If it has found fewer
    #: runs than a page has, this is the time of the last run that it has looked at, and ``next`` goes on from there.
    searched_until: Instant | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """A page as rows of the ledger, without secrets."""

    runs: list[history.Run]
    next: str | None
    searched_until: datetime | None


def page(
    connection: Connection,
    registry: Registry,
    chosen: Selection,
    *,
    limit: int,
    cursor: str | None = None,
    view: View = WHOLE,
) -> Page:
    """Return a page of the runs that ``chosen`` selects. Raises the errors of ``rows``."""
    found = rows(connection, registry, chosen, limit=limit, cursor=cursor, view=view)
    return Page(items=shapes(connection, found.runs), next=found.next, searched_until=found.searched_until)


def rows(
    connection: Connection,
    registry: Registry,
    chosen: Selection,
    *,
    limit: int,
    cursor: str | None = None,
    view: View = WHOLE,
) -> Rows:
    """Return a page of the runs that ``chosen`` selects, as rows of the ledger.

    Raises the errors of ``chosen_filter``, and SelectionError for an invalid cursor.
    """
    hiding = redactor(connection, registry, view)
    wanted = chosen_filter(connection, registry, chosen, hiding, view)
    found = search.found(connection, wanted, limit + 1, cursors.place(cursor, chosen, wanted))
    shown = found.runs[:limit]
    last = cursors.of_place(found.reached, chosen) if found.reached is not None else None
    if len(found.runs) > limit:
        last = cursors.cursor(shown[-1], wanted, chosen)
    return Rows([hiding.run(run) for run in shown], last, found.reached_at)


def seen(wanted: Filter, view: View) -> Filter:
    """Return ``wanted`` without the jobs that the person may not see."""
    if view.jobs is None:
        return wanted
    return replace(wanted, jobs=set(view.jobs) if wanted.jobs is None else set(wanted.jobs) & set(view.jobs))


def newest(
    connection: Connection, registry: Registry, chosen: Selection | None = None, *, limit: int = 50
) -> list[Run]:
    """Return the newest runs that the filter chooses, the newest first. A search goes on until it has found them all.

    Raises the errors of ``chosen_filter``.
    """
    hiding = redactor(connection, registry)
    wanted = chosen_filter(connection, registry, chosen or Selection(), hiding)
    found = search.found(connection, wanted, limit)
    runs = found.runs
    while found.reached is not None:
        found = search.found(connection, wanted, limit - len(runs), found.reached)
        runs += found.runs
    return shapes(connection, [hiding.run(run) for run in runs])


def chosen_filter(
    connection: Connection, registry: Registry, chosen: Selection, hiding: Redactor, view: View = WHOLE
) -> Filter:
    """Return the filter for a list. A list also shows dropped and cancelled runs.

    Raises UnknownJob, PluginError, SelectionError or BadTime, and Forbidden for a search that the person may not do.
    """
    searched.refuse_unseen(view, error=chosen.error, args=chosen.args)
    searched.refuse_secret(hiding, chosen.args, chosen.job)
    states = (State(chosen.state),) if chosen.state is not None else tuple(State)
    wanted = seen(replace(chosen.filter(connection, registry, states), even_withdrawn=True), view)
    if wanted.jobs is None and wanted.queue is not None:
        return replace(wanted, jobs=jobs_of_queue(connection, registry, wanted.queue))
    if wanted.jobs is None and wanted.args:
        return replace(wanted, jobs=hiding.known)
    if wanted.jobs is None and wanted.has_key:
        return replace(wanted, jobs=history.jobs_seen(connection))
    return wanted


def jobs_of_queue(connection: Connection, registry: Registry, queue: str) -> set[str]:
    """Return the jobs that have this queue here, or had it in any release.

    A list filters by these jobs, since finished runs have no index by queue.
    """
    return {job.name for job in registry if job.queue == queue} | releases.jobs_of_queue(connection, queue)


def details(connection: Connection, registry: Registry, run_id: int, view: View = WHOLE) -> Details:
    """Return the run in full. Raises UnknownRun."""
    row = history.run(connection, run_id)
    if row is None or not view.shows(row.job):
        raise UnknownRun(f"run {run_id} does not exist; runs are deleted after ROTA_RETENTION_DAYS")
    hiding = redactor(connection, registry, view)
    run = hiding.run(row)
    (listed,) = shapes(connection, [run])
    children = listing.children(connection, run_id, view.jobs)
    parent = history.run(connection, row.parent_id) if row.parent_id is not None else None
    return Details.model_validate(
        {
            **{name: getattr(run, name) for name in OF_ROW},
            **listed.model_dump(),
            "limit": limits.of_run(connection, run),
            "attempts": [shown_attempt(hiding, row, each) for each in attempts.of_run(connection, run_id)],
            "enqueued_by": Relative.model_validate(parent) if parent is not None and view.shows(parent.job) else None,
            "enqueued": [Relative.model_validate(child) for child in children[:MOST_CHILDREN]],
            "has_enqueued_more": len(children) > MOST_CHILDREN,
        }
    )


def shown_attempt(hiding: Redactor, run: history.Run, attempt: Row[Any]) -> Attempt:
    """Return an attempt of ``run`` without secrets."""
    texts = {name: hiding.value(run.job, run.args, getattr(attempt, name)) for name in ("error", "traceback", "log")}
    return Attempt.model_validate({**attempt._mapping, **texts})
