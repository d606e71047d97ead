"""Lists runs by the filter of ``rota retry`` and ``rota drop``, and shows one run in full."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row

from core.errors import Forbidden, UnknownRun
from core.jobs.registry import Registry
from core.ledger import attempts, history, listing, releases
from core.ledger.listing import MOST_CHILDREN
from core.ledger.models import State
from core.ledger.operations import Filter
from core.operations import cursors, limits
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
    #: The run that enqueued the shown run, unless its row is deleted.
    enqueued_by: Relative | None
    #: The runs that the shown run has enqueued, the newest first, and whether there are more than these.
    enqueued: list[Relative]
    has_enqueued_more: bool


#: The columns that are shown only for a run in full, and not in a list.
OF_ROW = ("queue", "priority", "args", "due_at", "expires_at", "subject", "limits", "waits_for", "failures", "crashes")


class Page(Shape):
    """A page of runs, the newest first."""

    items: list[Run]
    #: The ``cursor`` of the next page; null on the last page.
    next: str | None


def page(
    connection: Connection,
    registry: Registry,
    chosen: Selection,
    *,
    limit: int,
    cursor: str | None = None,
    view: View = WHOLE,
) -> Page:
    """Return a page of the runs that ``chosen`` selects.

    Raises the errors of ``newest``, SelectionError for an invalid cursor, and Forbidden for a search in errors that the
    person may not do.
    """
    refuse_search(chosen, view)
    wanted = seen(chosen_filter(connection, registry, chosen), view)
    found = listing.newest(connection, wanted, limit + 1, cursors.place(cursor, chosen, wanted))
    hiding, shown = redactor(connection, registry, view), found[:limit]
    last = cursors.cursor(shown[-1], wanted, chosen) if len(found) > limit else None
    return Page(items=shapes(connection, [hiding.run(run) for run in shown]), next=last)


def refuse_search(chosen: Selection, view: View) -> None:
    """Raise Forbidden for a search in errors by a person who may not see arguments, which errors may contain."""
    if chosen.error is not None and not view.has_arguments:
        raise Forbidden("errors may contain arguments of runs, which you may not see; search without `error`")


def seen(wanted: Filter, view: View) -> Filter:
    """Return ``wanted`` without the jobs that the person may not see."""
    if view.jobs is None:
        return wanted
    return replace(wanted, jobs=set(view.jobs) if wanted.jobs is None else set(wanted.jobs) & set(view.jobs))


def newest(
    connection: Connection, registry: Registry, chosen: Selection | None = None, *, limit: int = 50
) -> list[Run]:
    """Return the newest runs that the filter chooses, the newest first.

    Raises UnknownJob, PluginError, SelectionError or BadTime.
    """
    wanted = chosen_filter(connection, registry, chosen or Selection())
    hiding = redactor(connection, registry)
    return shapes(connection, [hiding.run(run) for run in listing.newest(connection, wanted, limit)])


def chosen_filter(connection: Connection, registry: Registry, chosen: Selection) -> Filter:
    """Return the filter for a list. A list also shows dropped and cancelled runs. Raises the errors of ``newest``."""
    states = (State(chosen.state),) if chosen.state is not None else tuple(State)
    wanted = replace(chosen.filter(connection, registry, states), even_withdrawn=True)
    if wanted.queue is not None and wanted.jobs is None:
        return replace(wanted, jobs=jobs_of_queue(connection, registry, wanted.queue))
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
    children = listing.children(connection, run_id)
    parent = history.run(connection, row.parent_id) if row.parent_id is not None else None
    return Details.model_validate(
        {
            **{name: getattr(run, name) for name in OF_ROW},
            **listed.model_dump(),
            "limit": limits.of_run(connection, run),
            "attempts": [shown_attempt(hiding, row, each) for each in attempts.of_run(connection, run_id)],
            "enqueued_by": Relative.model_validate(parent) if parent is not None else None,
            "enqueued": [Relative.model_validate(child) for child in children[:MOST_CHILDREN]],
            "has_enqueued_more": len(children) > MOST_CHILDREN,
        }
    )


def shown_attempt(hiding: Redactor, run: history.Run, attempt: Row[Any]) -> Attempt:
    """Return an attempt of ``run`` without secrets."""
    texts = {name: hiding.value(run.job, run.args, getattr(attempt, name)) for name in ("error", "traceback", "log")}
    return Attempt.model_validate({**attempt._mapping, **texts})
