"""Plans of changes to many runs: a plan is made, shown, confirmed, carried out by a job, and can be cancelled.

An operation changes only runs that are still as they were when the plan was made (``core/ledger/plans.py``). Making a
plan changes nothing and is not audited. A person confirms a plan by its digest, and by a phrase where something would
be lost for good. ``core/operations/carrying_out.py`` carries it out.
"""

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sqlalchemy import Connection, Row
from sqlalchemy.orm import Session

from core.enqueue import enqueue
from core.errors import ConfirmationRequired, PlanError, SelectionError, UnknownPlan
from core.jobs.registry import Registry
from core.ledger import audit, cancels, history, operations, plans
from core.ledger.audit import Actor
from core.ledger.models import WAITING, State
from core.observability.events import OperationCancelled, OperationConfirmed, emit
from core.operations import access, leftovers, searched
from core.operations.json_shape import Instant, Shape
from core.operations.leftovers import Kind
from core.operations.orphans import refuse_unknown_to_the_fleet
from core.operations.redaction import redactor
from core.operations.runs import Run, shapes
from core.operations.selection import Selection
from core.settings import Settings

Action = Literal["retry", "drop", "cancel", "adopt", "cleanup"]
#: The job that carries out operations. It is a job of the core.
CARRY_OUT = "carry-out-operation"
#: The states of the runs that each action changes.
STATES: dict[Action, Sequence[State]] = {
    "retry": operations.RETRIABLE,
    "drop": operations.DROPPABLE,
    "cancel": cancels.CANCELLABLE,
    "adopt": (State.ORPHANED,),
}
#: The name of each action in the audit, which is the name of the command.
AUDITED: dict[Action, audit.Action] = {
    "retry": "retry",
    "drop": "drop",
    "cancel": "cancel",
    "adopt": "orphans adopt",
    "cleanup": "orphans clean",
}
#: A plan shows this many runs.
SHOWN = 10
#: The least and the largest rate, in runs per second.
RATES = (0.01, 10_000.0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The plan to make."""

    action: Action
    selection: Selection = field(default_factory=Selection)
    #: The most runs per second; None for no limit.
    rate: float | None = None
    #: The reason for the action, for other people.
    why: str | None = None
    #: Whether a clean-up also removes dead letters that people may want to read.
    is_full: bool = False


class Confirmation(Shape):
    """What a person must send to confirm a plan: its digest, and the phrase if there is one."""

    digest: str
    phrase: str | None


class Plan(Shape):
    """A plan. It changes nothing until it is confirmed."""

    id: int
    action: Action
    digest: str
    #: The number of runs, or of leftovers in Redis, that will be changed at most.
    total: int
    by_job: dict[str, int]
    rate: float | None
    #: The shortest time that the operation takes at its rate.
    least_seconds: float | None
    expires_at: Instant
    #: Whether the plan can no longer be confirmed, since it was not confirmed in time.
    is_expired: bool
    #: The conditions by which the runs were selected. A key and texts that may be personal data are not told.
    conditions: dict[str, Any]
    #: The first runs in their present state.
    runs: list[Run]
    leftovers: list[leftovers.Item]
    confirm: Confirmation


class Operation(Shape):
    """A plan that was confirmed, and its progress."""

    id: int
    action: Action
    #: ``running``, ``stopped``, ``done`` or ``cancelled``.
    state: str
    total: int
    changed: int
    #: The number of runs, or of leftovers, that were left out, by reason. They were no longer as planned.
    left_out: dict[str, int]
    remaining: int
    rate: float | None
    by_job: dict[str, int]
    digest: str
    confirmed_by: str
    confirmed_at: Instant
    finished_at: Instant | None
    ended_by: str | None
    ended_because: str | None
    #: The last run of the job that carries out the operation.
    run_id: int | None


class OperationPage(Shape):
    """A page of operations. ``next`` is the parameter ``before`` of the next page."""

    items: list[Operation]
    next: int | None


class LeftOut(Shape):
    """A run, or a leftover in Redis, that an operation has left out."""

    item: str
    reason: str


class LeftOutPage(Shape):
    """Items that were left out, in the order of the plan. ``next`` is the parameter ``after`` of the next page."""

    items: list[LeftOut]
    next: int | None


def make(connection: Connection, registry: Registry, configured: Settings, wanted: Wanted, actor: Actor) -> Plan:
    """Make a plan in the caller's transaction.

    Raises Forbidden, the errors of ``Selection.runs``, SelectionError if the action does not fit the selection or if
    there are too many runs, and LeftoversError.
    """
    check(actor, wanted.action, is_full=wanted.is_full)
    if wanted.rate is not None and not RATES[0] <= wanted.rate <= RATES[1]:
        raise PlanError(f"a rate is from {RATES[0]:g} to {RATES[1]:g} runs per second")
    if wanted.action == "cleanup":
        row = of_leftovers(connection, registry, configured, wanted, actor)
    else:
        row = of_runs(connection, registry, wanted, actor)
    return shown(connection, registry, row.id, actor)


def of_runs(connection: Connection, registry: Registry, wanted: Wanted, actor: Actor) -> Row[Any]:
    """Insert a plan for the runs of a selection."""
    selection, states = wanted.selection, states_of(wanted)
    if not selection.is_one_way:
        raise SelectionError("give the runs' ids, or select runs by a job, a queue, a reason or another condition")
    searched.refuse_unseen(access.view(connection, actor), error=selection.error, args=selection.args)
    hiding = redactor(connection, registry)
    searched.refuse_secret(hiding, selection.args, selection.job)
    if selection.ids:
        selection.runs(connection, registry, states)
        chosen = operations.Filter(states)
    else:
        chosen = selection.filter(connection, registry, states)
    if chosen.jobs is None and chosen.args:
        chosen = replace(chosen, jobs=hiding.known)  # as in a list: arguments of other jobs are hidden
    absolute = {"since": chosen.since, "until": chosen.until}
    criteria = {**selection.criteria, **{name: at.isoformat() for name, at in absolute.items() if at is not None}}
    plan_id = plans.create(connection, wanted.action, options(wanted, criteria), actor.name)
    by_job = plans.add_runs(connection, plan_id, chosen, selection.ids)
    refuse(connection, registry, wanted.action, by_job, actor)
    return plans.seal(connection, plan_id, by_job, sum(by_job.values()))


def states_of(wanted: Wanted) -> Sequence[State]:
    """Return the states of the runs to select. Raises SelectionError if the action changes no run in the wanted
    state.
    """
    states, state = STATES[wanted.action], wanted.selection.state
    if state is None:
        return states
    if state not in states:
        raise SelectionError(f"{wanted.action} changes runs that are {' or '.join(states)}, not {state}")
    return (State(state),)


def refuse(connection: Connection, registry: Registry, action: Action, by_job: dict[str, int], actor: Actor) -> None:
    """Raise an error if ``actor`` cannot carry out a plan for the runs that ``by_job`` counts.

    The error is SelectionError, Forbidden or UnknownJob.
    """
    total = sum(by_job.values())
    if not total:
        raise SelectionError(f"no run that is {' or '.join(STATES[action])} matches")
    access.check_jobs(connection, actor, by_job)
    if total > plans.MOST:
        raise SelectionError(f"more than {plans.MOST} runs match; narrow the conditions, or give a limit")
    if action in ("retry", "adopt"):
        refuse_unknown_to_the_fleet(connection, [registry.job(name) for name in sorted(by_job)])


def of_leftovers(
    connection: Connection, registry: Registry, configured: Settings, wanted: Wanted, actor: Actor
) -> Row[Any]:
    """Insert a plan for leftovers in Redis."""
    if wanted.selection != Selection():
        raise SelectionError("a clean-up takes no selection: it removes what is of no use, from all queues")
    found = leftovers.look(connection, registry, configured).found
    going = [each for each in found if wanted.is_full or each.kind is not Kind.DEAD_LETTER]
    if not going:
        raise SelectionError(f"there are no leftovers older than {configured.stale_hours:g} hours")
    plan_id = plans.create(connection, wanted.action, options(wanted, {}), actor.name)
    plans.add_places(connection, plan_id, [leftovers.packed(each) for each in going])
    by_kind: dict[str, int] = {}
    for each in going:
        by_kind[str(each.kind)] = by_kind.get(str(each.kind), 0) + 1
    return plans.seal(connection, plan_id, by_kind, len(going))


def options(wanted: Wanted, criteria: dict[str, str | int]) -> dict[str, Any]:
    """Return the options that are stored with the plan."""
    given = {"rate": wanted.rate, "why": wanted.why, "full": wanted.is_full or None, "ids": bool(wanted.selection.ids)}
    return {"criteria": criteria, **{name: value for name, value in given.items() if value}}


def check(actor: Actor, action: Action, *, is_full: bool = False) -> None:
    """Raise Forbidden unless ``actor`` may do ``action``, as a full clean-up if ``is_full``."""
    access.check(actor, AUDITED[action])
    if action == "cleanup":
        access.check_unlimited(actor, "a clean-up of Redis")
    if is_full:
        access.require(actor, "admin", "a full clean-up")


def shown(connection: Connection, registry: Registry, plan_id: int, actor: Actor) -> Plan:
    """Return a plan with the first of its runs. Raises UnknownPlan or Forbidden."""
    row = known(connection, plan_id, actor)
    items = plans.items(connection, plan_id, 0, SHOWN)
    hiding = redactor(connection, registry, access.view(connection, actor))
    runs = [history.run(connection, each.run_id) for each in items if each.run_id is not None]
    rate = row.options.get("rate")
    return Plan(
        **of_row(row),
        least_seconds=None if rate is None else (row.total - 1) / rate,
        expires_at=row.expires_at,
        is_expired=row.state == "planned" and row.is_expired,
        conditions=row.options["criteria"],
        runs=shapes(connection, [hiding.run(run) for run in runs if run is not None]),
        leftovers=[leftovers.item(leftovers.unpacked(each.place)) for each in items if each.place is not None],
        confirm=Confirmation(digest=row.digest, phrase=phrase(row)),
    )


def of_row(row: Row[Any]) -> dict[str, Any]:
    """Return the fields that plans and operations have in common."""
    told = {name: getattr(row, name) for name in ("id", "action", "digest", "total", "by_job")}
    return {**told, "rate": row.options.get("rate")}


def phrase(row: Row[Any]) -> str | None:
    """Return the phrase that confirms a plan, or None if its digest is enough.

    A cancelled run loses its work, and removed dead letters are lost.
    """
    if row.action == "cancel":
        return f"cancel {row.total} runs"
    return f"remove {row.total} leftovers" if row.options.get("full") else None


def known(connection: Connection, plan_id: int, actor: Actor, *, is_locked: bool = False) -> Row[Any]:
    """Return a plan that ``actor`` may see. Raises UnknownPlan or Forbidden."""
    row = plans.found(connection, plan_id, is_locked=is_locked)
    if row is None:
        raise UnknownPlan(f"there is no plan {plan_id}; plans that were not confirmed are deleted after a day")
    if row.action == "cleanup":
        access.check_unlimited(actor, "a clean-up of Redis")
    else:
        access.check_jobs(connection, actor, row.by_job)
    return row


def execute(session: Session, plan_id: int, actor: Actor, *, digest: str, typed: str | None = None) -> Operation:
    """Confirm a plan in the caller's transaction, so that it is carried out. Confirming it again changes nothing.

    If the operation was stopped, or its run was dropped, is dead or was deleted, the operation goes on. Raises
    UnknownPlan, Forbidden, PlanError or ConfirmationRequired.
    """
    access.require(actor, "operator", "an operation")
    connection = session.connection()
    row = known(connection, plan_id, actor, is_locked=True)
    check(actor, row.action, is_full=bool(row.options.get("full")))
    refuse_unconfirmed(row, digest, typed)
    if row.state == "done" or is_at_work(connection, row):
        return operation(connection, row)
    if row.state == "cancelled" or (row.state == "planned" and row.is_expired):
        said = "was cancelled" if row.state == "cancelled" else f"was not confirmed within {plans.LASTS}"
        raise PlanError(f"plan {plan_id} {said}; make a new plan")
    entry = record(connection, row, actor)
    run_id = enqueue(session, CARRY_OUT, key=str(plan_id), args={"operation": plan_id})
    confirmed = {"confirmed_at": row.confirmed_at or history.now(connection), "actor": stored(actor), "run_id": run_id}
    ended = {"ended_by": None, "ended_because": None, "finished_at": None}
    row = plans.change(connection, plan_id, state="running", audit_id=entry, **confirmed, **ended)
    emit(OperationConfirmed(plan_id, row.action, row.total, actor.name))
    return operation(connection, row)


def is_at_work(connection: Connection, row: Row[Any]) -> bool:
    """Return whether an operation is running, and its run of the job that carries it out has not ended."""
    run = history.run(connection, row.run_id) if row.state == "running" and row.run_id is not None else None
    return run is not None and run.state in (*WAITING, State.RUNNING)


def refuse_unconfirmed(row: Row[Any], digest: str, typed: str | None) -> None:
    """Raise ConfirmationRequired unless the digest and the phrase are those of the plan."""
    if digest != row.digest:
        raise ConfirmationRequired(f"the digest is not that of plan {row.id}; look at the plan, and send its digest")
    if (wanted := phrase(row)) is not None and typed != wanted:
        raise ConfirmationRequired(f"this cannot be undone; send the phrase {wanted!r} too")


def record(connection: Connection, row: Row[Any], actor: Actor) -> int:
    """Record the confirmation in the audit. Return the id of the entry that counts the changed runs.

    If the operation was confirmed before, that is its first entry, and this confirmation gets an entry without numbers.
    """
    action, jobs = AUDITED[row.action], ", ".join(sorted(row.by_job))
    if row.audit_id is not None:
        audit.record(connection, actor, action, jobs, operation=row.id, resumed=True)
        return int(row.audit_id)
    told = {name: row.options.get(name) for name in ("rate", "full")}
    details = {**row.options["criteria"], **told, "operation": row.id, "planned": row.total, "runs": 0}
    if row.options.get("why"):
        details["why"] = row.options["why"]
    return audit.record(connection, actor, action, jobs, **details)


def stored(actor: Actor) -> dict[str, Any]:
    """Return the person and their rights as JSON."""
    told = dataclasses.asdict(actor)
    limits = {name: None if told[name] is None else sorted(told[name]) for name in ("plugins", "queues")}
    return {**told, **limits, "facts": json.loads(audit.as_json(dict(actor.facts)))}


def operation(connection: Connection, row: Row[Any]) -> Operation:
    """Return a plan that was confirmed."""
    return Operation(
        **of_row(row),
        **{name: getattr(row, name) for name in ("state", "changed", "confirmed_at", "finished_at", "run_id")},
        ended_by=row.ended_by,
        ended_because=row.ended_because,
        left_out=plans.left_out(connection, row.id),
        remaining=row.total - row.position,
        confirmed_by=row.actor["name"],
    )


def one(connection: Connection, operation_id: int, actor: Actor) -> Operation:
    """Return an operation. Raises UnknownPlan or Forbidden."""
    return operation(connection, confirmed(known(connection, operation_id, actor)))


def confirmed(row: Row[Any]) -> Row[Any]:
    """Return ``row``. Raises UnknownPlan if the plan was not confirmed."""
    if row.confirmed_at is None:
        raise UnknownPlan(f"plan {row.id} was not confirmed, so there is no operation")
    return row


def listed(connection: Connection, actor: Actor, *, limit: int = 50, before: int | None = None) -> OperationPage:
    """Return the newest operations that ``actor`` may see, the newest first; only those with ids below ``before``."""
    rows = plans.listed(connection, limit=limit, before=before)
    visible = access.visible(connection, actor)
    items = [operation(connection, row) for row in rows if visible is None or is_within(row, visible)]
    return OperationPage(items=items, next=rows[-1].id if len(rows) == limit else None)


def is_within(row: Row[Any], jobs: Collection[str]) -> bool:
    """Return whether a plan concerns nothing but ``jobs``."""
    return bool(row.action != "cleanup" and row.by_job.keys() <= set(jobs))


def left_out(connection: Connection, operation_id: int, actor: Actor, *, after: int = 0) -> LeftOutPage:
    """Return a page of the items that were left out. Raises UnknownPlan or Forbidden."""
    confirmed(known(connection, operation_id, actor))
    row = plans.left_out_of(connection, operation_id, after)
    if row is None:
        return LeftOutPage(items=[], next=None)
    items = [LeftOut(item=item, reason=why) for item, why in zip(row.left_out, row.left_because, strict=True)]
    return LeftOutPage(items=items, next=row.chunk + 1)


def every_left_out(connection: Connection, operation_id: int, actor: Actor) -> Iterator[LeftOut]:
    """Yield all items that were left out, page by page. Raises UnknownPlan or Forbidden."""
    after: int | None = 0
    while after is not None:
        page = left_out(connection, operation_id, actor, after=after)
        yield from page.items
        after = page.next


def cancel(connection: Connection, operation_id: int, actor: Actor) -> Operation:
    """Cancel an operation in the caller's transaction. Runs that were changed stay changed, and the others are left as
    they are.

    Raises UnknownPlan, Forbidden or PlanError.
    """
    access.check(actor, "operations cancel")
    row = confirmed(known(connection, operation_id, actor, is_locked=True))
    check(actor, row.action, is_full=bool(row.options.get("full")))
    if row.state == "cancelled":
        return operation(connection, row)
    if row.state == "done":
        raise PlanError(f"operation {operation_id} is done already")
    row = plans.change(
        connection, operation_id, state="cancelled", finished_at=history.now(connection), ended_by=actor.name
    )  # fmt: skip
    audit.record(connection, actor, "operations cancel", row.action, operation=row.id, runs=row.changed)
    emit(OperationCancelled(row.id, row.action, row.changed, row.total, actor.name))
    return operation(connection, row)


def clean_up(
    session: Session,
    registry: Registry,
    configured: Settings,
    actor: Actor,
    *,
    is_full: bool,
    confirm: str | None,
    phrase: str | None,
) -> Operation:
    """Confirm the clean-up whose digest is ``confirm``. Without such a plan, make one, and raise ConfirmationRequired
    with it.

    Commits. Raises the errors of ``make`` and ``execute``.
    """
    check(actor, "cleanup", is_full=is_full)
    plan_id = plans.by_digest(session.connection(), "cleanup", confirm) if confirm is not None else None
    if plan_id is None or confirm is None:
        plan = make(session.connection(), registry, configured, Wanted("cleanup", is_full=is_full), actor)
        session.commit()
        raise ConfirmationRequired("look at the plan, and send its digest as `confirm`, with its phrase, if any", plan)
    done = execute(session, plan_id, actor, digest=confirm, typed=phrase)
    session.commit()
    return done
