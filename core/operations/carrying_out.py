"""Carries out operations in small batches, each in one transaction of the run that carries them out.

A batch locks the operation and its next items, changes the runs that are still as planned, records why it leaves out
the others, and advances ``position``. The commit fails if the run has lost its lease. So an interrupted batch has
changed nothing, and the next attempt repeats it. Before each batch, the rights of the person who confirmed are checked.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row

from core.errors import Forbidden
from core.jobs.registry import Registry
from core.jobs.run import Run
from core.ledger import audit, cancels, history, operations, orphans, plans, tokens
from core.ledger.audit import Actor
from core.ledger.plans import Item
from core.observability import metrics
from core.observability.events import OperationFinished, OperationStopped, emit
from core.operations import leftovers
from core.operations import plans as made
from core.operations.tokens import actor_of
from core.settings import Settings

#: The most items of a batch.
BATCH = 500
#: A run of the job works for about this long, and then requests the next run. So a worker that is stopping waits no
#: longer than this.
SLICE_SECONDS = 15.0

#: The items that were left out, each with the reason.
LeftOut = dict[str, str]


def carry_out(run: Run, registry: Registry, configured: Settings, operation_id: int) -> dict[str, Any]:
    """Carry out a part of an operation. Request the next run of the job, unless the operation is over."""
    began, done = time.monotonic(), 0
    while True:
        step = next_batch(run, registry, configured, operation_id)
        if step is None:
            return {"operation": operation_id, "dealt_with": done, "is_over": True}
        done += step.items
        wait = max(began + done / step.rate - time.monotonic(), 0.0) if step.rate else 0.0
        if time.monotonic() + wait - began > SLICE_SECONDS:
            follow(run, operation_id, wait)
            return {"operation": operation_id, "dealt_with": done, "is_over": False}
        run.checkpoint({"operation": operation_id, "dealt_with": done})
        time.sleep(wait)


@dataclass(frozen=True, slots=True)
class Step:
    """A batch that was dealt with, and the most items per second."""

    items: int
    rate: float | None


def follow(run: Run, operation_id: int, wait: float) -> None:
    """Request the next run of the job, in the transaction of the last batch."""
    args = {"operation": operation_id}
    run_id = run.enqueue(made.CARRY_OUT, key=str(operation_id), args=args, delay=timedelta(seconds=wait))
    plans.change(run.session.connection(), operation_id, run_id=run_id)


def next_batch(run: Run, registry: Registry, configured: Settings, operation_id: int) -> Step | None:
    """Deal with the next items, without a commit. Return None if the operation is over."""
    connection = run.session.connection()
    row = plans.found(connection, operation_id, is_locked=True)
    if row is None or row.state != "running":
        return None
    try:
        actor = present(connection, row)
        made.check(actor, row.action, is_full=bool(row.options.get("full")))
        made.known(connection, operation_id, actor)
    except Forbidden as error:
        end(connection, row, "stopped", str(error))
        return None
    items = plans.items(connection, operation_id, row.position, size(row.options.get("rate")))
    if not items:
        end(connection, row, "done")
        return None
    by = f"{actor.name}, operation {operation_id}"
    left = change(connection, registry, configured, row, items, replace(actor, name=by))
    account(connection, row, len(items), left)
    return Step(len(items), row.options.get("rate"))


def size(rate: float | None) -> int:
    """Return the number of items of a batch."""
    return BATCH if rate is None else max(1, min(BATCH, int(rate)))


def present(connection: Connection, row: Row[Any]) -> Actor:
    """Return the person who confirmed, with their present rights. Raises Forbidden.

    A token or session with which they confirmed must still be valid. Otherwise the operation is stopped, and can be
    confirmed again.
    """
    told = row.actor
    kind = next((kind for kind in ("token", "session") if kind in told["facts"]), None)
    if kind is not None:
        credential = tokens.by_id(connection, told["facts"][kind])
        if credential is None:
            raise Forbidden(f"the {kind} with which {told['name']} confirmed has expired or was revoked")
        return actor_of(credential)
    limits = {name: None if told[name] is None else frozenset(told[name]) for name in ("plugins", "queues")}
    # A later release may have stored more fields.
    known = {each.name: told[each.name] for each in fields(Actor) if each.name in told}
    return Actor(**{**known, **limits})


def end(connection: Connection, row: Row[Any], state: str, why: str | None = None) -> None:
    """Record that an operation is done or stopped."""
    plans.change(connection, row.id, state=state, finished_at=history.now(connection), ended_because=why)
    if state == "done":
        emit(OperationFinished(row.id, row.action, row.changed, row.total - row.changed))
    else:
        emit(OperationStopped(row.id, row.action, row.changed, row.total, str(why)))


def account(connection: Connection, row: Row[Any], items: int, left: LeftOut) -> None:
    """Record the batch in the operation and in the audit."""
    changed = row.changed + items - len(left)
    plans.leave_out(connection, row.id, row.position, left)
    plans.change(connection, row.id, position=row.position + items, changed=changed)
    audit.amend(connection, row.audit_id, runs=changed, left_out=row.position + items - changed or None)
    metrics.operation_items(row.action, items - len(left), len(left))


def change(
    connection: Connection, registry: Registry, configured: Settings, row: Row[Any], items: Sequence[Item], actor: Actor
) -> LeftOut:
    """Change those of ``items`` that are still as planned. Return the others."""
    if row.action == "cleanup":
        return remove(connection, registry, configured, items, actor.name)
    found = plans.lock_runs(connection, [each.run_id for each in items if each.run_id is not None])
    left = {each.name: because for each in items if (because := changed_since(each, found)) is not None}
    same = [found[each.run_id] for each in items if each.name not in left and each.run_id is not None]
    return left | ACTS[row.action](connection, registry, same, actor, row.options.get("why"))


def changed_since(item: Item, found: dict[int, Row[Any]]) -> str | None:
    """Return why a run is no longer as planned, or None."""
    run = found.get(item.run_id or 0)
    if run is None:
        return "is no longer in the ledger"
    if run.version != item.version:
        return f"has changed, and is {run.state}{f' ({run.reason})' if run.reason else ''}"
    return None


def unknown(registry: Registry, runs: Sequence[Row[Any]]) -> LeftOut:
    """Return the runs whose job the worker does not have."""
    return {str(run.id): f"the worker does not have the job {run.job}" for run in runs if run.job not in registry}


def unchanged(runs: Sequence[Row[Any]], changed: Collection[int], because: str) -> LeftOut:
    """Return the runs that a statement did not change, with the reason."""
    done = set(changed)
    return {str(run.id): because for run in runs if run.id not in done}


def retry(
    connection: Connection, registry: Registry, runs: Sequence[Row[Any]], _actor: Actor, _why: str | None
) -> LeftOut:
    """Retry dead runs."""
    left = unknown(registry, runs)
    ids = [run.id for run in runs if str(run.id) not in left]
    jobs = [registry.job(name) for name in {run.job for run in runs} if name in registry]
    return unchanged(runs, operations.retry(connection, ids, jobs), "is not dead") | left


def drop(
    connection: Connection, _registry: Registry, runs: Sequence[Row[Any]], _actor: Actor, _why: str | None
) -> LeftOut:
    """Drop waiting and dead runs."""
    return unchanged(runs, operations.drop(connection, [run.id for run in runs]), "was dropped already")


def cancel(
    connection: Connection, _registry: Registry, runs: Sequence[Row[Any]], actor: Actor, why: str | None
) -> LeftOut:
    """Cancel waiting and running runs."""
    done = cancels.cancel(connection, [run.id for run in runs], by=actor.name, reason=why)
    return {str(each.run_id): "was cancelled already" for each in done if not each.is_new}


def adopt(
    connection: Connection, registry: Registry, runs: Sequence[Row[Any]], _actor: Actor, _why: str | None
) -> LeftOut:
    """Adopt orphans."""
    left = unknown(registry, runs)
    adopted: list[int] = []
    for name in {run.job for run in runs if str(run.id) not in left}:
        adopted += orphans.adopt(connection, registry.job(name), run_ids=[run.id for run in runs if run.job == name])
    return unchanged(runs, adopted, "is no orphan") | left


ACTS = {"retry": retry, "drop": drop, "cancel": cancel, "adopt": adopt}


def remove(connection: Connection, registry: Registry, configured: Settings, items: Sequence[Item], by: str) -> LeftOut:
    """Remove leftovers from Redis. If a batch is repeated, the leftovers that it removed before count as left out."""
    wanted = {str(each.place): leftovers.unpacked(str(each.place)) for each in items}
    with leftovers.opened(lambda: connection, registry, configured) as stored:
        gone = set(stored.remove(list(wanted.values()), by))
    left = [each.old for each in wanted.values() if each not in gone]
    return {f"{old.queue} {old.redis_id}": "is gone already, or may be of use again" for old in left}
