"""Requests a run for a person, and follows the run to its end."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from core.enqueue import enqueue
from core.errors import BadArguments, SelectionError
from core.jobs.registry import Registry
from core.ledger import audit, history, requested
from core.ledger.audit import Actor
from core.ledger.models import FINAL, State
from core.ledger.pauses import Pause
from core.operations import access, pauses

POLL_SECONDS = 0.2
#: If no worker has started the run after this many seconds, check whether there is a live worker.
PATIENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Requested:
    """A requested run, and the pauses whose end the run waits for."""

    run_id: int
    pauses: list[Pause]
    #: Whether the run was requested now; False if the same request came before, with the same idempotency key.
    is_new: bool = True


def request(
    engine: Engine,
    registry: Registry,
    job: str,
    actor: Actor,
    *,
    key: str = "",
    args: Mapping[str, Any] | None = None,
    once: str | None = None,
) -> Requested:
    """Request a run of ``job`` that is due now. Raises Forbidden, UnknownJob or BadArguments.

    ``once`` is an idempotency key of the actor: the same request counts once within a day. Raises BadArguments if the
    key belongs to another request.
    """
    access.check(actor, "run")
    refuse_fast_lane(registry, job)
    with Session(engine) as session, session.begin():
        access.check_jobs(session.connection(), actor, [job])
        if once is not None and (before := requested.before(session, actor.name, once, [job, key, args])) is not None:
            return Requested(before, pauses.of_job(session.connection(), registry, job), is_new=False)
        run_id = enqueue(session, job, key=key, args=args)
        if once is not None:
            requested.remember(session, actor.name, once, run_id)
        audit.record(session, actor, "run", job, run=run_id, arguments=sorted(args) if args else None)
        return Requested(run_id, pauses.of_job(session.connection(), registry, job))


def refuse_fast_lane(registry: Registry, job: str) -> None:
    """Raise BadArguments for a job whose runs are not in the ledger."""
    if not registry.job(job).ledger:
        raise BadArguments(
            f"job {job!r} is on the fast lane (ledger=False): such a run would not be recorded; "
            "send it a message from code, or declare it with ledger=True"
        )


def follow(
    engine: Engine,
    run_id: int,
    timeout_seconds: float | None,
    *,
    show: Callable[[history.Run], None],
    warn: Callable[[str], None],
) -> history.Run:
    """Call ``show`` with each state of the run. Return the run when it is over, or after the time-out.

    Call ``warn`` if no live worker serves the run's queue. Raises SelectionError if the run is deleted meanwhile.
    """
    began, is_warned = time.monotonic(), False
    while True:
        with engine.connect() as connection:
            row = history.run(connection, run_id)
            if row is None:
                raise SelectionError(f"run {run_id} is no longer in the ledger")
            waited = time.monotonic() - began
            is_alone = row.state in (State.QUEUED, State.RETRYING) and waited > PATIENCE_SECONDS
            if is_alone and not is_warned and not history.serves(history.alive(connection), row.queue):
                warn(f"no worker is alive for queue {row.queue!r}; waiting for one to start")
                is_warned = True
        show(row)
        if row.state in FINAL or (timeout_seconds is not None and waited >= timeout_seconds):
            return row
        time.sleep(POLL_SECONDS)
