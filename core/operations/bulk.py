"""Retries, drops or cancels many runs.

A plan lists the runs. ``carry_out`` changes these runs batch by batch, at a limited rate, until it is done or stopped.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import DBAPIError

from core import database
from core.errors import IncompleteError, SelectionError
from core.jobs.registry import Registry
from core.ledger import audit, cancels, history, operations
from core.ledger.audit import Actor
from core.ledger.models import State
from core.operations import access
from core.operations import runs as shown
from core.operations.batches import Batches
from core.operations.json_shape import Shape
from core.operations.orphans import refuse_unknown_to_the_fleet
from core.operations.runs import Run
from core.operations.selection import Selection

#: The most runs that one transaction changes.
BATCH = 500
#: How many runs are shown before the change, and after it.
SHOWN = 20


class Retried(Shape):
    """The outcome of a retry, and the first of the runs in their present state."""

    matched: int
    retried: int
    runs: list[Run]


class Dropped(Shape):
    """The outcome of a drop, and the first of the runs in their present state."""

    matched: int
    dropped: int
    runs: list[Run]


class Cancelled(Shape):
    """The outcome of a cancel, and the first of the runs in their present state."""

    matched: int
    cancelled: int
    #: The number of cancelled runs that are still running. Their transactions can no longer commit.
    leaving: int
    runs: list[Run]


class Act(Protocol):
    """A change of runs in the caller's transaction."""

    def __call__(self, connection: Connection, run_ids: Sequence[int]) -> int:
        """Change these runs. Return how many runs were changed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A planned change of runs."""

    #: The verb for the change and its participle, for example ``retry`` and ``retried``.
    verb: audit.Action
    done: str
    act: Act
    actor: Actor
    target: str
    criteria: dict[str, str | int]
    #: The id, job, state and reason of each selected run.
    runs: Sequence[Row[Any]]
    #: The reason for the action, for the audit.
    why: str | None = None

    @property
    def run_ids(self) -> list[int]:
        """The ids of the selected runs."""
        return [run.id for run in self.runs]


def plan_retry(connection: Connection, registry: Registry, selection: Selection, actor: Actor) -> Plan:
    """Plan a retry of dead runs.

    Raises Forbidden and the errors of ``Selection.runs``. Raises UnknownJob for a job that is not loaded here, and
    SelectionError for a job that no live process has.
    """
    access.check(actor, "retry")
    runs = permitted(connection, actor, selection.runs(connection, registry, operations.RETRIABLE))
    jobs = [registry.job(name) for name in sorted({run.job for run in runs})]
    refuse_unknown_to_the_fleet(connection, jobs)

    def act(connection: Connection, run_ids: Sequence[int]) -> int:
        return len(operations.retry(connection, run_ids, jobs, even_withdrawn=selection.means_withdrawn))

    return Plan("retry", "retried", act, actor, ", ".join(job.name for job in jobs), selection.criteria, runs)


def plan_drop(connection: Connection, registry: Registry, selection: Selection, actor: Actor) -> Plan:
    """Plan a drop of waiting or dead runs. Raises Forbidden and the errors of ``Selection.runs``."""
    access.check(actor, "drop")
    states = (State(selection.state),) if selection.state is not None else operations.DROPPABLE
    runs = permitted(connection, actor, selection.runs(connection, registry, states))

    def act(connection: Connection, run_ids: Sequence[int]) -> int:
        return len(operations.drop(connection, run_ids))

    jobs = sorted({run.job for run in runs})
    return Plan("drop", "dropped", act, actor, ", ".join(jobs), selection.criteria, runs)


def plan_cancel(
    connection: Connection, registry: Registry, selection: Selection, actor: Actor, *, why: str | None = None
) -> Plan:
    """Plan a cancel of waiting or running runs. Raises Forbidden and the errors of ``Selection.runs``.

    Raises SelectionError also for a job of the fast lane, and for a run that is being cancelled already.
    """
    access.check(actor, "cancel")
    states = (State(selection.state),) if selection.state is not None else cancels.CANCELLABLE
    refuse_fast_lane(registry, selection.job)
    runs = permitted(connection, actor, selection.runs(connection, registry, states))
    refuse_cancelled(connection, selection.ids)

    def act(connection: Connection, run_ids: Sequence[int]) -> int:
        return sum(found.is_new for found in cancels.cancel(connection, run_ids, by=actor.name, reason=why))

    jobs = sorted({run.job for run in runs})
    return Plan("cancel", "cancelled", act, actor, ", ".join(jobs), selection.criteria, runs, why)


def permitted(connection: Connection, actor: Actor, runs: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    """Return ``runs``. Raises Forbidden if ``actor`` may not act on the jobs of all of them."""
    access.check_jobs(connection, actor, {run.job for run in runs})
    return runs


def refuse_fast_lane(registry: Registry, name: str | None) -> None:
    """Raise SelectionError for a job of the fast lane, which has no runs."""
    job = registry.jobs.get(name or "")
    if job is not None and not job.ledger:
        raise SelectionError(
            f"job {name!r} is on the fast lane (ledger=False), which has no runs that can be cancelled"
        )


def refuse_cancelled(connection: Connection, run_ids: Sequence[int]) -> None:
    """Raise SelectionError if one of the runs has been cancelled already and is still running."""
    marks = cancels.marks(connection, run_ids).values()
    if marks:
        said = "; ".join(f"run {mark.run_id} was cancelled already, {shown.cancelled(mark)}" for mark in marks)
        raise SelectionError(f"{said}; nothing was changed")


def carry_out(
    engine: Engine,
    plan: Plan,
    *,
    rate: float | None = None,
    stop: threading.Event | None = None,
    advance: Callable[[int], object] = lambda _count: None,
) -> int:
    """Change all runs of ``plan``, at most ``rate`` per second. Return how many were changed.

    Call ``advance`` with the size of each batch. Raises IncompleteError if ``stop`` or PostgreSQL ended the work early.
    """
    stop, run_ids = stop or threading.Event(), plan.run_ids
    # The audit lists ids only if a person typed them. Conditions may select many thousand runs.
    details = {"ids": None if plan.criteria else run_ids, **plan.criteria, "why": plan.why}
    batches = Batches(engine, plan.actor, plan.verb, plan.target, details)
    try:
        for batch in paced(run_ids, rate, stop):
            batches.do(partial(plan.act, run_ids=batch))
            advance(len(batch))
    except DBAPIError as error:
        told = database.brief(error)
        raise IncompleteError(f"{plan.done} {batches.done} of {len(run_ids)}, then: {told}") from error
    if stop.is_set():
        raise IncompleteError(f"stopped: {plan.done} {batches.done} of {len(run_ids)}; the others are unchanged")
    return batches.done


def carry_out_whole(engine: Engine, plan: Plan) -> None:
    """Change all runs of ``plan``. Raises SelectionError if some of them have changed since they were selected."""
    done = carry_out(engine, plan)
    if done < len(plan.runs):
        raise SelectionError(f"{len(plan.runs) - done} of {len(plan.runs)} runs had changed since they were selected")


def paced(run_ids: Sequence[int], rate: float | None, stop: threading.Event) -> Iterator[list[int]]:
    """Yield ``run_ids`` in batches, at most ``rate`` ids per second, until ``stop`` is set."""
    size = BATCH if rate is None else max(1, min(BATCH, int(rate)))
    began, taken, ids = time.monotonic(), 0, iter(run_ids)
    while (batch := list(islice(ids, size))) and not stop.is_set():
        yield batch
        taken += len(batch)
        if rate is not None and taken < len(run_ids):
            stop.wait(max(began + taken / rate - time.monotonic(), 0))


def first(connection: Connection, plan: Plan) -> list[Run]:
    """Return the first of the runs of ``plan`` in their present state."""
    found = [history.run(connection, run_id) for run_id in plan.run_ids[:SHOWN]]
    return shown.shapes(connection, [run for run in found if run is not None])


def leaving(connection: Connection, plan: Plan) -> int:
    """Return the number of cancelled runs of ``plan`` whose functions have not returned yet."""
    return len(cancels.marks(connection, plan.run_ids))


def outcome(connection: Connection, plan: Plan, done: int) -> Retried | Dropped | Cancelled:
    """Return the outcome of ``plan``."""
    told = {"matched": len(plan.runs), plan.done: done, "runs": first(connection, plan)}
    if plan.verb == "cancel":
        return Cancelled.model_validate({**told, "leaving": leaving(connection, plan)})
    return (Retried if plan.verb == "retry" else Dropped).model_validate(told)
