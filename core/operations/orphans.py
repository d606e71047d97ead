"""Orphans: runs that ended because no live process had their job. They can be adopted."""

from collections.abc import Collection

from sqlalchemy import Connection, Engine

from core.errors import PluginError, SelectionError, suggestion
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.ledger import orphans, releases
from core.ledger.audit import Actor
from core.operations import access
from core.operations.access import WHOLE, View
from core.operations.batches import Batches
from core.operations.json_shape import Instant, Shape
from core.operations.redaction import redactor
from core.operations.runs import Run, refuse_unknown

RUNS_SHOWN = 50


class Count(Shape):
    """The number of runs of a job that were orphaned for one reason, from one state."""

    job: str
    reason: str | None
    was: str | None
    runs: int
    last_at: Instant | None


class Orphan(Run):
    """An orphaned run, and its former state."""

    former_state: str | None


class Orphans(Shape):
    """The numbers of orphans, and the newest orphans."""

    counts: list[Count]
    runs: list[Orphan]


def found(
    connection: Connection,
    registry: Registry,
    *,
    job: str | None = None,
    plugin: str | None = None,
    view: View = WHOLE,
) -> Orphans:
    """Return the orphans of a job, of a plugin's present and former jobs, or of all jobs. Raises UnknownJob."""
    if job is not None:
        refuse_unknown(connection, registry, job)
    jobs = selected(connection, job, plugin)
    if view.jobs is not None:
        jobs = set(view.jobs) if jobs is None else set(jobs) & set(view.jobs)
    hiding = redactor(connection, registry, view)
    runs = [hiding.run(run) for run in orphans.newest(connection, jobs, limit=RUNS_SHOWN)]
    return Orphans.model_validate({"counts": orphans.counts(connection, jobs), "runs": runs})


def selected(connection: Connection, job: str | None, plugin: str | None) -> Collection[str] | None:
    """Return the selected jobs, or None for all jobs."""
    if plugin is None:
        return None if job is None else [job]
    of_plugin = jobs_of(connection, plugin)
    return of_plugin if job is None else {job} & of_plugin


def jobs_of(connection: Connection, plugin: str) -> set[str]:
    """Return the jobs with orphans that belonged to ``plugin`` in the last release that had the job."""
    jobs = [count.job for count in orphans.counts(connection)]
    return {job for job, owner in releases.last_owners(connection, jobs).items() if owner == plugin}


def adoptable(connection: Connection, registry: Registry, *, job: str | None, plugin: str | None) -> list[Job]:
    """Return the job, or the jobs of a plugin, if this process and a live process have them.

    Raises UnknownJob, PluginError or SelectionError.
    """
    wanted = [registry.job(job)] if job is not None else jobs_of_loaded(registry, str(plugin))
    refuse_unknown_to_the_fleet(connection, wanted)
    return wanted


def jobs_of_loaded(registry: Registry, plugin: str) -> list[Job]:
    """Return the jobs of a plugin that this process has loaded. Raises PluginError."""
    loaded = {found.name: found for found in registry.plugins if found.state == "loaded"}
    if plugin not in loaded:
        raise PluginError(f"plugin {plugin!r} is not loaded here{suggestion(plugin, loaded)}; see `rota plugins`")
    return list(loaded[plugin].jobs)


def refuse_unknown_to_the_fleet(connection: Connection, jobs: list[Job]) -> None:
    """Raise SelectionError for a job that no live process has. Without live processes, every job is allowed."""
    fleet = releases.fleet(connection)
    unknown = [job.name for job in jobs if not fleet.knows(job.name)]
    if unknown and fleet.queues_of:
        named = ", ".join(unknown)
        raise SelectionError(f"no live process has {named}: restart the workers with the plugin first")


def counts(connection: Connection, jobs: Collection[Job]) -> list[Count]:
    """Return the numbers of orphans of ``jobs``."""
    return [Count.model_validate(count) for count in orphans.counts(connection, [job.name for job in jobs])]


def adopt(engine: Engine, job: Job, actor: Actor) -> int:
    """Adopt all orphans of ``job``, batch by batch. Return how many."""
    access.check(actor, "orphans adopt")
    with engine.connect() as connection:
        access.check_jobs(connection, actor, [job.name])
    batches = Batches(engine, actor, "orphans adopt", job.name)
    while batches.do(lambda connection: len(orphans.adopt(connection, job))):
        pass
    return batches.done
