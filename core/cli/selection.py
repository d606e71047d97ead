"""Which runs ``rota retry`` and ``rota drop`` are about: by their ids, or by what they have in common."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import click
from sqlalchemy import Connection, Row

from core.cli import Problem, moments
from core.cli.runs import refuse_unknown
from core.errors import PluginError, suggestion
from core.jobs.registry import Registry
from core.ledger import history, operations, releases
from core.ledger.models import State
from core.ledger.operations import DROPPED, Filter
from core.plugins import loading


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` what chooses runs: ids, and options for a filter."""
    options = [
        click.argument("ids", nargs=-1, type=click.IntRange(min=1, max=2**63 - 1), metavar="[ID]..."),
        click.option("--job", metavar="JOB", help="Those of this job."),
        click.option("--plugin", metavar="PLUGIN", help="Those of this plugin's jobs."),
        click.option("--queue", metavar="QUEUE", help="Those on this queue."),
        click.option("--since", metavar="TIME", help="Those that ended, or were queued, since: 2h (ago), 03:00."),
        click.option("--until", metavar="TIME", help="Those that ended, or were queued, before."),
        click.option("--error", metavar="TEXT", help="Those whose error has this in it."),
        click.option("--reason", metavar="REASON", help="Those with this reason, such as crashes."),
        click.option("--limit", type=click.IntRange(min=1), help="The oldest of them, at most this many."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Options:
    """What was given on the command line."""

    ids: tuple[int, ...]
    job: str | None
    plugin: str | None
    queue: str | None
    since: str | None
    until: str | None
    error: str | None
    reason: str | None
    limit: int | None
    state: str | None = None

    @property
    def criteria(self) -> dict[str, str]:
        """The filter as the audit may keep it: what stands in errors may be personal."""
        given = {name: getattr(self, name) for name in ("job", "plugin", "queue", "since", "until", "reason", "state")}
        told = {name: value for name, value in given.items() if value is not None}
        return told if self.error is None else {**told, "error": "(a text)"}

    @property
    def means_dropped(self) -> bool:
        """Whether runs that were dropped are meant as well."""
        return bool(self.ids) or self.reason == DROPPED

    def require_one_way(self) -> None:
        """Raise click.UsageError unless runs are chosen either by id or by a filter."""
        if bool(self.ids) == bool(self.criteria) or (self.ids and self.limit is not None):
            raise click.UsageError("name runs by their ids, or choose them by --job, --queue, --reason or the like")

    def runs(self, connection: Connection, states: Sequence[State]) -> Sequence[Row[Any]]:
        """The runs that are meant, in one of ``states``.

        Raises Problem if an id is not of such a run, or if there is none at all.
        """
        if self.ids:
            found = operations.named(connection, self.ids)
            refuse_unfit(self.ids, found, states)
            return found
        found = operations.chosen(connection, self._filter(connection, states))
        if not found:
            raise Problem(f"no run that is {' or '.join(states)} matches")
        return found

    def _filter(self, connection: Connection, states: Sequence[State]) -> Filter:
        registry, now = loading.current(), history.now(connection)
        if self.job is not None:
            refuse_unknown(connection, self.job)
        if self.queue is not None:
            refuse_unknown_queue(connection, registry, self.queue)
        return Filter(
            states,
            jobs_of(connection, registry, self.job, self.plugin),
            self.queue,
            moments.past(self.since, now, "--since"),
            moments.past(self.until, now, "--until"),
            self.error,
            self.reason,
            self.limit,
        )


def refuse_unfit(ids: Collection[int], found: Sequence[Row[Any]], states: Sequence[State]) -> None:
    """Raise Problem, naming each id that is of no run or of one that is not in ``states``."""
    by_id = {run.id: run for run in found}
    wrong = [f"run {run_id} does not exist" for run_id in ids if run_id not in by_id]
    wrong += [
        f"run {run.id} is {run.state}, not {' or '.join(states)}{advice(run)}"
        for run in found
        if run.state not in states
    ]
    if states == operations.DROPPABLE:
        wrong += [f"run {run.id} was dropped already" for run in found if run.reason == DROPPED]
    if wrong:
        raise Problem("; ".join(wrong) + "; nothing was changed")


def advice(run: Row[Any]) -> str:
    """What to do about a run that is in another state."""
    return {
        State.ORPHANED: f" (`rota orphans adopt {run.job}` takes it up again)",
        State.QUEUED: " (it waits to be started: rota why)",
        State.RETRYING: " (it will be tried again by itself)",
        State.RUNNING: " (a worker has it)",
    }.get(run.state, "")


def jobs_of(connection: Connection, registry: Registry, job: str | None, plugin: str | None) -> set[str] | None:
    """The jobs that the options name; None: all. Raises PluginError."""
    if plugin is None:
        return None if job is None else {job}
    seen = {*history.jobs_seen(connection), *registry.jobs}
    owners = releases.last_owners(connection, seen) | {name: owner.name for name, owner in registry.owners.items()}
    if plugin not in owners.values():
        raise PluginError(f"unknown plugin {plugin!r}{suggestion(plugin, set(owners.values()))}; see `rota plugins`")
    of_plugin = {name for name, owner in owners.items() if owner == plugin}
    return of_plugin if job is None else of_plugin & {job}


def refuse_unknown_queue(connection: Connection, registry: Registry, queue: str) -> None:
    """Raise Problem for a queue that no job uses or has used."""
    known = {*(job.queue for job in registry), *releases.queues_ever(connection)}
    if queue not in known:
        raise Problem(f"unknown queue {queue!r}{suggestion(queue, known)}")
