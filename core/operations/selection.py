"""Selects runs by their ids, or by conditions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from core.errors import PluginError, SelectionError, suggestion
from core.jobs.registry import Registry
from core.ledger import history, operations, releases
from core.ledger.models import State
from core.ledger.operations import DROPPED, WITHDRAWN, Filter
from core.operations import searched, times
from core.operations.runs import refuse_unknown
from core.operations.wording import either

CONDITIONS = ("job", "key", "plugin", "queue", "since", "until", "reason", "state", "error", "args")
#: The text in the audit for conditions whose values may be personal data.
UNTOLD = {"key": "(a key)", "error": "(a text)", "args": "(arguments)"}


@dataclass(frozen=True, slots=True)
class Selection:
    """The ids of runs, or conditions. A condition that is None is not checked."""

    ids: tuple[int, ...] = ()
    job: str | None = None
    plugin: str | None = None
    queue: str | None = None
    #: A time as text, such as ``2h`` or ``03:00``.
    since: str | None = None
    until: str | None = None
    error: str | None = None
    reason: str | None = None
    limit: int | None = None
    state: str | None = None
    key: str | None = None
    #: Arguments as text, such as ``customer:42`` or ``address.city:Leeds``. All of them must fit.
    args: tuple[str, ...] = ()

    @property
    def criteria(self) -> dict[str, str | int]:
        """The conditions and the limit for the audit, without a key and the text of an error, which may be personal
        data.
        """
        told = {name: getattr(self, name) for name in (*CONDITIONS, "limit") if getattr(self, name) not in (None, ())}
        return told | {name: said for name, said in UNTOLD.items() if name in told}

    @property
    def means_withdrawn(self) -> bool:
        """Whether dropped and cancelled runs are selected too."""
        return bool(self.ids) or self.reason in WITHDRAWN

    @property
    def is_one_way(self) -> bool:
        """Whether the selection has either ids or conditions, but not both. A limit needs conditions."""
        has_conditions = any(getattr(self, name) not in (None, ()) for name in CONDITIONS)
        return bool(self.ids) != has_conditions and not (self.ids and self.limit is not None)

    def runs(self, connection: Connection, registry: Registry, states: Sequence[State]) -> Sequence[Row[Any]]:
        """Return the id, job, state and reason of each selected run in one of ``states``.

        Raises SelectionError if an id has no such run, or if no run is selected. Raises UnknownJob, PluginError or
        BadTime for an invalid condition.
        """
        if not self.is_one_way:
            raise SelectionError("give the runs' ids, or select runs by a job, a queue, a reason or another condition")
        if self.ids:
            found = operations.named(connection, self.ids)
            refuse_unfit(self.ids, found, states)
            return found
        found = operations.chosen(connection, self.filter(connection, registry, states))
        if not found:
            raise SelectionError(f"no run that is {' or '.join(states)} matches")
        return found

    def filter(self, connection: Connection, registry: Registry, states: Sequence[State]) -> Filter:
        """Return the conditions on runs in one of ``states``.

        Raises UnknownJob, PluginError, SelectionError or BadTime.
        """
        now = history.now(connection)
        if self.job is not None:
            refuse_unknown(connection, registry, self.job)
        if self.queue is not None:
            refuse_unknown_queue(connection, registry, self.queue)
        return Filter(
            states,
            jobs_of(connection, registry, self.job, self.plugin),
            self.queue,
            times.past(self.since, now, "since"),
            times.past(self.until, now, "until"),
            self.error,
            self.reason,
            self.limit,
            key=self.key,
            args=[searched.either(each) for each in self.args],
        )


def refuse_unfit(ids: Collection[int], found: Sequence[Row[Any]], states: Sequence[State]) -> None:
    """Raise SelectionError if an id has no run, or if its run is not in one of ``states``.

    The message names each such id. A run that was dropped already cannot be dropped again.
    """
    by_id = {run.id: run for run in found}
    wrong = [f"run {run_id} does not exist" for run_id in ids if run_id not in by_id]
    wrong += [
        f"run {run.id} has the state {run.state}, not {either(states)}{advice(run)}"
        for run in found
        if run.state not in states
    ]
    if states == operations.DROPPABLE:
        wrong += [f"run {run.id} was dropped already" for run in found if run.reason == DROPPED]
    if wrong:
        raise SelectionError("; ".join(wrong) + "; nothing was changed")


def advice(run: Row[Any]) -> str:
    """Return the advice about a run whose state does not allow the operation."""
    return {
        State.ORPHANED: f" (`rota orphans adopt {run.job}` adopts it)",
        State.QUEUED: " (it waits for a worker: see `rota why`)",
        State.RETRYING: " (it is tried again automatically)",
        State.RUNNING: " (a worker is working on it)",
        State.DEAD: f" ({run.reason})",
    }.get(run.state, "")


def jobs_of(connection: Connection, registry: Registry, job: str | None, plugin: str | None) -> set[str] | None:
    """Return the jobs that the options name, or None for all jobs. Raises PluginError."""
    if plugin is None:
        return None if job is None else {job}
    seen = {*history.jobs_seen(connection), *registry.jobs}
    owners = releases.last_owners(connection, seen) | {name: owner.name for name, owner in registry.owners.items()}
    if plugin not in owners.values():
        raise PluginError(f"unknown plugin {plugin!r}{suggestion(plugin, set(owners.values()))}; see `rota plugins`")
    of_plugin = {name for name, owner in owners.items() if owner == plugin}
    return of_plugin if job is None else of_plugin & {job}


def refuse_unknown_queue(connection: Connection, registry: Registry, queue: str) -> None:
    """Raise SelectionError for a queue that no job uses or has used."""
    known = {*(job.queue for job in registry), *releases.queues_ever(connection)}
    if queue not in known:
        raise SelectionError(f"unknown queue {queue!r}{suggestion(queue, known)}")
