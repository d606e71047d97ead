"""Retries and drops many runs: first a plan, then batch by batch, at a steady rate, until it is stopped."""

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
from core.errors import IncompleteError
from core.jobs.registry import Registry
from core.ledger import audit, history, operations
from core.ledger.audit import Actor
from core.ledger.models import State
from core.operations import runs as shown
from core.operations.batches import Batches
from core.operations.json_shape import Shape
from core.operations.orphans import refuse_unknown_to_the_fleet
from core.operations.runs import Run
from core.operations.selection import Selection

#: The most runs that one transaction changes.
BATCH = 500
#: How many runs are shown before they are changed, and afterwards.
SHOWN = 20


class Retried(Shape):
    """The outcome of a retry, and the first of the runs as they are now."""

    matched: int
    retried: int
    runs: list[Run]


class Dropped(Shape):
    """The outcome of a drop, and the first of the runs as they are now."""

    matched: int
    dropped: int
    runs: list[Run]


class Act(Protocol):
    """The change of runs, in the caller's transaction; returns how many it changed."""

    def __call__(self, connection: Connection, run_ids: Sequence[int]) -> int:
        """Act on the runs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The planned change of runs, and the words for it."""

    #: For example ``retry`` and ``retried``.
    verb: audit.Action
    done: str
    act: Act
    actor: Actor
    target: str
    criteria: dict[str, str]
    #: The id, job, state and reason of each selected run.
    runs: Sequence[Row[Any]]

    @property
    def run_ids(self) -> list[int]:
        """The ids of the selected runs."""
        return [run.id for run in self.runs]


def plan_retry(connection: Connection, registry: Registry, selection: Selection, actor: Actor) -> Plan:
    """Plan a retry of dead runs. Raises the errors of ``Selection.runs``, and SelectionError for an unknown job."""
    runs = selection.runs(connection, registry, operations.RETRIABLE)
    jobs = [registry.job(name) for name in sorted({run.job for run in runs})]
    refuse_unknown_to_the_fleet(connection, jobs)

    def act(connection: Connection, run_ids: Sequence[int]) -> int:
        return operations.retry(connection, run_ids, jobs, even_dropped=selection.means_dropped)

    return Plan("retry", "retried", act, actor, ", ".join(job.name for job in jobs), selection.criteria, runs)


def plan_drop(connection: Connection, registry: Registry, selection: Selection, actor: Actor) -> Plan:
    """Plan a drop of waiting or dead runs. Raises the errors of ``Selection.runs``."""
    states = (State(selection.state),) if selection.state is not None else operations.DROPPABLE
    runs = selection.runs(connection, registry, states)
    jobs = sorted({run.job for run in runs})
    return Plan("drop", "dropped", operations.drop, actor, ", ".join(jobs), selection.criteria, runs)


def carry_out(
    engine: Engine,
    plan: Plan,
    *,
    rate: float | None = None,
    stop: threading.Event | None = None,
    advance: Callable[[int], object] = lambda _count: None,
) -> int:
    """Change all runs of ``plan``, at most ``rate`` per second; return how many were changed.

    ``advance`` is called with the size of each batch. Raises IncompleteError if ``stop`` or PostgreSQL ended it early.
    """
    stop, run_ids = stop or threading.Event(), plan.run_ids
    details = {"ids": None if plan.criteria else run_ids, **plan.criteria}  # the ids only if a person gave them
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
    """The first of the runs of ``plan`` as they are now."""
    found = [history.run(connection, run_id) for run_id in plan.run_ids[:SHOWN]]
    return [shown.shape(run) for run in found if run is not None]


def outcome(connection: Connection, plan: Plan, done: int) -> Retried | Dropped:
    """The outcome of ``plan``."""
    told = {"matched": len(plan.runs), plan.done: done, "runs": first(connection, plan)}
    return (Retried if plan.verb == "retry" else Dropped).model_validate(told)
