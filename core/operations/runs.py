"""Shows runs as JSON and in words."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection

from core.errors import UnknownJob, suggestion
from core.jobs.registry import Registry
from core.ledger import cancels, history, pauses
from core.ledger.cancels import Mark
from core.ledger.models import WAITING, State
from core.ledger.pauses import Pause
from core.operations import scopes
from core.operations.json_shape import Instant, Shape
from core.operations.pauses import in_words
from core.operations.wording import brief, local


class Cancellation(Shape):
    """The cancellation of a running run: the person, the time and the reason."""

    by: str
    at: Instant
    reason: str | None


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
    #: The cancellation of a running run whose function has not returned yet.
    cancelled: Cancellation | None = None


def shapes(connection: Connection, runs: Sequence[history.Run]) -> list[Run]:
    """Return rows of the ledger as JSON. A running run that is being cancelled also has its cancellation."""
    marks = cancels.marks(connection, [run.id for run in runs if run.state == State.RUNNING])
    return [shape(run, marks.get(run.id)) for run in runs]


def shape(run: history.Run, mark: Mark | None = None) -> Run:
    """Return a row of the ledger as JSON. ``Redactor.run`` must have hidden the secrets of ``run``."""
    shaped = Run.model_validate(run)
    if mark is None:
        return shaped
    cancellation = Cancellation(by=mark.asked_by, at=mark.asked_at, reason=mark.reason)
    return shaped.model_copy(update={"cancelled": cancellation})


def cancelled(mark: Mark) -> str:
    """Return a text such as ``by ann at 2026-11-23 03:00:00: wrong list``."""
    return f"by {mark.asked_by} at {local(mark.asked_at)}{f': {mark.reason}' if mark.reason else ''}"


def refuse_unknown(connection: Connection, registry: Registry, job: str) -> None:
    """Raise UnknownJob if neither a loaded plugin nor a run in the ledger has this job."""
    known = registry.jobs
    if job in known:
        return
    seen = history.jobs_seen(connection)
    if job not in seen:
        nearest = suggestion(job, {*known, *seen}) or "; `rota jobs` lists them"
        raise UnknownJob(f"unknown job {job!r}{nearest}")


def waits_for(registry: Registry, run: Run, active: Collection[Pause]) -> list[str]:
    """Return the ``active`` pauses whose end a run waits for, in words."""
    if run.state not in WAITING:
        return []
    return [in_words(pause) for pause in pauses.of_scopes(active, scopes.of_job(registry, run.job))]


def outcome(run: Run) -> str:
    """Return the most important fact about a run, in a few words."""
    if run.state == State.SUCCEEDED:
        return brief(run.result)
    if run.state == State.RUNNING and run.cancelled is not None:
        why = f": {run.cancelled.reason}" if run.cancelled.reason else ""
        return f"is being cancelled by {run.cancelled.by}{why}"
    if run.state == State.RUNNING:
        return brief(run.progress)
    return ": ".join(part for part in (run.reason, (run.error or "").partition("\n")[0]) if part)
