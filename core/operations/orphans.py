"""Orphans: the runs whose job was gone, and taking them up again."""

from collections.abc import Collection

from sqlalchemy import Connection, Engine

from core.errors import PluginError, SelectionError, suggestion
from core.jobs.job import Job
from core.jobs.registry import Registry
from core.ledger import orphans, releases
from core.ledger.audit import Actor
from core.operations.batches import Batches
from core.operations.runs import Run, refuse_unknown
from core.operations.shape import Instant, Shape

RUNS_SHOWN = 50


class Count(Shape):
    """How many runs of a job were orphaned for one reason, and what they were."""

    job: str
    reason: str | None
    was: str | None
    runs: int
    last_at: Instant | None


class Orphan(Run):
    """A run that was orphaned, and what it was before."""

    former_state: str | None


class Orphans(Shape):
    """All orphans counted, and the newest of them."""

    counts: list[Count]
    runs: list[Orphan]


def found(connection: Connection, registry: Registry, *, job: str | None = None, plugin: str | None = None) -> Orphans:
    """The orphans of a job, or of jobs that are or were a plugin's, or all. Raises UnknownJob."""
    if job is not None:
        refuse_unknown(connection, registry, job)
    jobs = selected(connection, job, plugin)
    return Orphans.model_validate(
        {"counts": orphans.counts(connection, jobs), "runs": orphans.newest(connection, jobs, limit=RUNS_SHOWN)}
    )


def selected(connection: Connection, job: str | None, plugin: str | None) -> Collection[str] | None:
    """The jobs that are named; None: all."""
    if plugin is None:
        return None if job is None else [job]
    of_plugin = jobs_of(connection, plugin)
    return of_plugin if job is None else {job} & of_plugin


def jobs_of(connection: Connection, plugin: str) -> set[str]:
    """The jobs with orphans that are ``plugin``'s, or were in the last release that had them."""
    jobs = [count.job for count in orphans.counts(connection)]
    return {job for job, owner in releases.last_owners(connection, jobs).items() if owner == plugin}


def adoptable(connection: Connection, registry: Registry, *, job: str | None, plugin: str | None) -> list[Job]:
    """The job, or the jobs of a plugin, as they are known here and to the processes that are alive.

    Raises UnknownJob, PluginError or SelectionError.
    """
    wanted = [registry.job(job)] if job is not None else jobs_of_loaded(registry, str(plugin))
    refuse_unknown_to_the_fleet(connection, wanted)
    return wanted


def jobs_of_loaded(registry: Registry, plugin: str) -> list[Job]:
    """The jobs of a plugin that is loaded here. Raises PluginError."""
    loaded = {found.name: found for found in registry.plugins if found.state == "loaded"}
    if plugin not in loaded:
        raise PluginError(f"plugin {plugin!r} is not loaded here{suggestion(plugin, loaded)}; see `rota plugins`")
    return list(loaded[plugin].jobs)


def refuse_unknown_to_the_fleet(connection: Connection, jobs: list[Job]) -> None:
    """Raise SelectionError for a job that would be orphaned again at once; nobody needs to be alive."""
    fleet = releases.fleet(connection)
    unknown = [job.name for job in jobs if not fleet.knows(job.name)]
    if unknown and fleet.queues_of:
        named = ", ".join(unknown)
        raise SelectionError(f"no process that is alive has {named}: restart the workers with the plugin first")


def counts(connection: Connection, jobs: Collection[Job]) -> list[Count]:
    """How many orphans there are of ``jobs``."""
    return [Count.model_validate(count) for count in orphans.counts(connection, [job.name for job in jobs])]


def adopt(engine: Engine, job: Job, actor: Actor) -> int:
    """Take all orphans of ``job`` up again, batch by batch; return how many."""
    batches = Batches(engine, actor, "orphans adopt", job.name)
    while batches.do(lambda connection: len(orphans.adopt(connection, job))):
        pass
    return batches.done
