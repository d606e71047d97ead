"""Runs in the ledger."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection

from core.errors import UnknownJob, suggestion
from core.jobs.registry import Registry
from core.ledger import history, pauses
from core.ledger.models import WAITING, State
from core.ledger.pauses import Pause
from core.operations import scopes
from core.operations.json_shape import Instant, Shape
from core.operations.pauses import in_words
from core.operations.redaction import redactor
from core.operations.wording import brief


class Run(Shape):
    """A run."""

    id: int
    job: str
    key: str
    slot: Instant | None
    state: str
    reason: str | None
    attempt: int
    queued_at: Instant
    started_at: Instant | None
    finished_at: Instant | None
    result: Any
    error: str | None
    worker: str | None
    progress: Any


def newest(
    connection: Connection, registry: Registry, *, job: str | None = None, state: str | None = None, limit: int = 50
) -> list[Run]:
    """The newest runs, newest first. Raises UnknownJob."""
    if job is not None:
        refuse_unknown(connection, registry, job)
    hiding = redactor(connection, registry)
    return [shape(hiding.run(run)) for run in history.newest(connection, job=job, state=state, limit=limit)]


def shape(run: history.Run) -> Run:
    """A row of the ledger as JSON; ``Redactor.run`` has hidden its secrets."""
    return Run.model_validate(run)


def refuse_unknown(connection: Connection, registry: Registry, job: str) -> None:
    """Raise UnknownJob for a name that neither a plugin nor the ledger has; a job that is not loaded may have runs."""
    known = registry.jobs
    if job in known:
        return
    seen = history.jobs_seen(connection)
    if job not in seen:
        nearest = suggestion(job, {*known, *seen}) or "; `rota jobs` lists them"
        raise UnknownJob(f"unknown job {job!r}{nearest}")


def waits_for(registry: Registry, run: Run, active: Collection[Pause]) -> list[str]:
    """The ``active`` pauses whose end a run waits for, in words."""
    if run.state not in WAITING:
        return []
    return [in_words(pause) for pause in pauses.of_scopes(active, scopes.of_job(registry, run.job))]


def outcome(run: Run) -> str:
    """The most important fact about a run, in a few words."""
    if run.state == State.SUCCEEDED:
        return brief(run.result)
    if run.state == State.RUNNING:
        return brief(run.progress)
    return ": ".join(part for part in (run.reason, (run.error or "").partition("\n")[0]) if part)
