"""The registry of loaded jobs, by name. The core looks up jobs only here."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from core.errors import UnknownJob, suggestion
from core.jobs.commands import Command
from core.jobs.job import Job
from core.jobs.keyed import WantedSchedules
from core.jobs.middleware import RunMiddleware
from core.jobs.plugin_settings import PluginSettings
from core.jobs.routes import Route

#: The scope of a pause of every job.
EVERYTHING = "everything"


def scopes(job: str, queue: str, plugin: str) -> tuple[str, ...]:
    """Return the scopes of the pauses that would pause ``job``."""
    return EVERYTHING, f"plugin:{plugin}", f"queue:{queue}", f"job:{job}"


def words_on_grace(job: Job, retention_days: float) -> str:
    """Return the warning for a job whose grace is longer than the retention of runs."""
    return f"misfire_grace={job.misfire_grace} is longer than ROTA_RETENTION_DAYS ({retention_days:g})"


@dataclass(frozen=True, slots=True)
class Registered:
    """A plugin's middleware around runs, with the name of the plugin."""

    plugin: str
    middleware: RunMiddleware

    @property
    def name(self) -> str:
        """The name of the middleware's class."""
        return type(self.middleware).__name__

    def __str__(self) -> str:
        return f"plugin={self.plugin} middleware={self.name}"


@dataclass(frozen=True, slots=True)
class Plugin:
    """An installed plugin, and the outcome of loading it."""

    name: str
    #: The distribution that the plugin came with, and its version.
    distribution: str
    version: str
    jobs: tuple[Job, ...] = ()
    #: The folder of the plugin's Alembic revisions, if it has revisions.
    migrations: Path | None = None
    #: The class of the plugin's settings, if it has settings.
    settings: type[PluginSettings] | None = None
    #: The plugin's middleware around runs, the outermost first.
    middleware: tuple[RunMiddleware, ...] = ()
    #: The functions that read the wanted schedules of the plugin's jobs, by the jobs' names.
    schedules: Mapping[str, WantedSchedules] = field(default_factory=dict)
    #: The plugin's own commands of ``rota``.
    commands: tuple[Command, ...] = ()
    #: The plugin's own routes of the HTTP service.
    routes: tuple[Route, ...] = ()
    #: Why the plugin is broken; None if it is not broken.
    error: str | None = None
    #: Whether the plugin is installed but disabled. None of a disabled plugin's modules is imported.
    is_disabled: bool = False

    @property
    def state(self) -> str:
        """``loaded``, ``broken`` or ``disabled``."""
        if self.is_disabled:
            return "disabled"
        return "broken" if self.error else "loaded"


@dataclass(frozen=True)
class Registry:
    """The plugins, and the jobs of all plugins that are not broken."""

    plugins: tuple[Plugin, ...] = ()
    jobs: Mapping[str, Job] = field(init=False)
    owners: Mapping[str, Plugin] = field(init=False)
    #: For each job, the scopes of the pauses that would pause the job.
    scopes: Mapping[str, tuple[str, ...]] = field(init=False)
    #: For each job that has middleware around its runs, this middleware, the outermost first. It is ordered by the
    #: plugins' names and, within a plugin, as the plugin returned it.
    middleware: Mapping[str, tuple[Registered, ...]] = field(init=False)

    def __post_init__(self) -> None:
        owned = {job.name: (job, plugin) for plugin in self.plugins if not plugin.error for job in plugin.jobs}
        object.__setattr__(self, "jobs", {name: job for name, (job, _) in sorted(owned.items())})
        object.__setattr__(self, "owners", {name: plugin for name, (_, plugin) in owned.items()})
        held_by = {name: scopes(name, job.queue, plugin.name) for name, (job, plugin) in owned.items()}
        object.__setattr__(self, "scopes", held_by)
        around = {name: self._around(plugin) for name, (_, plugin) in owned.items()}
        object.__setattr__(self, "middleware", {name: found for name, found in around.items() if found})

    def _around(self, owner: Plugin) -> tuple[Registered, ...]:
        """Return the middleware around the runs of one plugin's jobs.

        If two plugins registered the same object, it is listed once.
        """
        found: dict[int, Registered] = {}
        for plugin in sorted(self.plugins, key=lambda plugin: plugin.name):
            for middleware in plugin.middleware if not plugin.error else ():
                if middleware.every_job or plugin is owner:
                    found.setdefault(id(middleware), Registered(plugin.name, middleware))
        return tuple(found.values())

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs.values())

    def __contains__(self, name: str) -> bool:
        return name in self.jobs

    def job(self, name: str) -> Job:
        """Return the job called ``name``. Raises UnknownJob, whose message suggests a similar name if there is one."""
        try:
            return self.jobs[name]
        except KeyError:
            raise UnknownJob(f"unknown job {name!r}{suggestion(str(name), self.jobs)}") from None

    @property
    def ledger_queues(self) -> frozenset[str]:
        """The queues of jobs whose runs are in the ledger."""
        return frozenset(job.queue for job in self if job.ledger)

    def scheduled(self) -> Iterable[Job]:
        """Return the jobs that have a schedule."""
        return (job for job in self if job.schedule is not None)

    def keyed(self) -> Iterable[Job]:
        """Return the jobs whose keys may have schedules made at run time."""
        return (job for job in self if job.keyed is not None)

    @property
    def wanted_schedules(self) -> Mapping[str, WantedSchedules]:
        """The functions that read the wanted schedules of jobs, by the jobs' names."""
        loaded = (plugin for plugin in self.plugins if not plugin.error)
        return {job: read for plugin in loaded for job, read in sorted(plugin.schedules.items())}

    def outliving(self, retention: timedelta) -> list[Job]:
        """Return the jobs whose grace is longer than ``retention``.

        Their slots may run after the records of the slots' time are deleted.
        """
        return [job for job in self.scheduled() if job.misfire_grace > retention]

    def commands(self) -> Iterable[tuple[Plugin, Command]]:
        """Return the commands of plugins that are not broken, by name, each with its plugin."""
        found = [(plugin, each) for plugin in self.plugins if not plugin.error for each in plugin.commands]
        return sorted(found, key=lambda pair: pair[1].name)

    def routes(self) -> Mapping[str, tuple[Route, ...]]:
        """Return the routes of each plugin that is not broken and has routes, by the plugin's name."""
        return {plugin.name: plugin.routes for plugin in self.plugins if plugin.routes and not plugin.error}

    def broken(self) -> Iterable[Plugin]:
        """Return the plugins that could not be loaded."""
        return (plugin for plugin in self.plugins if plugin.error)
