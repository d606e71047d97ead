"""Finds installed plugins and registers those that are not disabled. Isolates broken plugins. Refuses misspelt hooks
and duplicate job names.
"""

import importlib
import inspect
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any

import pluggy

from core import settings
from core.errors import PluginError, suggestion
from core.jobs import arguments, hookspecs, secrets
from core.jobs.commands import Command
from core.jobs.commands import problem as command_problem
from core.jobs.hookspecs import NAMESPACE
from core.jobs.job import Job
from core.jobs.keyed import WantedSchedules
from core.jobs.limit import contradictions
from core.jobs.middleware import RunMiddleware
from core.jobs.plugin_settings import PluginSettings
from core.jobs.registry import Plugin, Registry
from core.jobs.routes import Route
from core.jobs.routes import problem as route_problem
from core.observability.events import PluginBroken, PluginFailed, PluginNotInstalled, emit
from core.plugins import admission
from core.settings import plugin_prefix

GROUP = "rota.plugins"
CORE = settings.CORE
#: The module of the core's own plugin, which uses the same hooks as any other plugin.
BUILT_IN = "core.upkeep"
#: pluggy's HookimplMarker sets this attribute on the functions that it marks.
IMPL_MARK = f"{NAMESPACE}_impl"


_in_use: list[Registry] = []


def current() -> Registry:
    """Return this process's registry, which is loaded on first use from the plugins that are installed."""
    return _in_use[-1] if _in_use else _installed()


@cache
def _installed() -> Registry:
    return load(entry_points(group=GROUP), settings.disabled())


@contextmanager
def using(registry: Registry) -> Iterator[Registry]:
    """Use ``registry`` as the current registry within the block. Tests need this."""
    _in_use.append(registry)
    try:
        yield registry
    finally:
        _in_use.remove(registry)


def load(points: Iterable[EntryPoint], disabled: Collection[str] = ()) -> Registry:
    """Load the built-in plugin and every plugin of ``points`` that is not ``disabled``.

    A plugin that cannot be loaded is logged and marked as broken. It never makes this function raise an error.
    """
    manager = pluggy.PluginManager(NAMESPACE)
    manager.add_hookspecs(hookspecs)
    ours = replace(offers(manager, CORE, importlib.import_module(BUILT_IN)), version=version("rota"))
    found = sorted(points, key=lambda point: point.name)
    warn_of_missing(disabled, [point.name for point in found])
    plugins = [
        ours,
        *(left_out(point) if point.name in disabled else isolate(manager, point, found) for point in found),
    ]
    registry = Registry(tuple(refuse_duplicates(plugins)))
    for plugin in registry.broken():
        emit(PluginBroken(plugin.name, str(plugin.error)))
    return registry


def warn_of_missing(disabled: Collection[str], installed: Collection[str]) -> None:
    """Log which ``disabled`` plugins are not installed: the name may be misspelt, or the plugin may be uninstalled."""
    for name in sorted(set(disabled) - set(installed)):
        emit(PluginNotInstalled(name, suggestion(name, installed)))


def left_out(point: EntryPoint) -> Plugin:
    """Return a plugin that is installed but disabled. Its modules are not imported."""
    return shipped(Plugin(point.name, "", "", is_disabled=True), point)


def isolate(manager: pluggy.PluginManager, point: EntryPoint, points: Iterable[EntryPoint]) -> Plugin:
    """Load one plugin of ``points``. An error in it affects no other plugin."""
    try:
        admission.require(point, points)
        plugin = offers(manager, point.name, instantiate(imported(point)))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        emit(PluginFailed(point.name), error)
        plugin = Plugin(point.name, "", "", error=f"{type(error).__name__}: {error}")
    return shipped(plugin, point)


def imported(point: EntryPoint) -> Any:
    """Return the object that an entry point names. Raises any error of its import."""
    try:
        return point.load()
    except AttributeError as error:
        found = sys.modules.get(point.module)
        if found is None or getattr(found, "__file__", None) or not hasattr(found, "__path__"):
            raise
        hint = f"the folder {next(iter(found.__path__))} hides it; rename that folder, or start in another one"
        raise PluginError(f"{error}: {hint}") from error


def shipped(plugin: Plugin, point: EntryPoint) -> Plugin:
    """Return ``plugin`` with the name and version of its distribution, if it has one."""
    distribution = point.dist
    if distribution is None:
        return plugin
    return replace(plugin, distribution=distribution.name, version=distribution.version)


def instantiate(loaded: Any) -> Any:
    """Return the plugin object of an entry point.

    A class is called. A module or an instance is itself the plugin object.
    """
    return loaded() if inspect.isclass(loaded) else loaded


def offers(manager: pluggy.PluginManager, name: str, plugin: Any) -> Plugin:
    """Call the hooks of ``plugin``, and return their checked answers. Raises an error if an answer is invalid."""
    refuse_misspelt_hooks(plugin)
    manager.register(plugin, name=name)
    jobs = [job for jobs in answers(manager, "register_jobs", plugin) for job in checked(jobs)]
    refuse_contradicting_limits(jobs)
    folders: list[Path] = answers(manager, "register_migrations", plugin)
    for folder in folders:
        if not Path(folder).is_dir():
            raise PluginError(f"register_migrations returned {str(folder)!r}, which is not a folder")
    offered = [check_settings(name, answer) for answer in answers(manager, "register_settings", plugin)]
    return Plugin(
        name,
        "rota",
        "",
        tuple(jobs),
        migrations=Path(folders[0]) if folders else None,
        settings=offered[0] if offered else None,
        middleware=tuple(each for found in answers(manager, "register_middleware", plugin) for each in around(found)),
        commands=tuple(each for found in answers(manager, "register_commands", plugin) for each in own_commands(found)),
        routes=tuple(each for found in answers(manager, "register_routes", plugin) for each in own_routes(found)),
        schedules=wanted_schedules(jobs, answers(manager, "register_schedules", plugin)),
    )


def check_settings(name: str, offered: type[PluginSettings]) -> type[PluginSettings]:
    """Check the class ``offered`` and the environment. Return the class. Raises SettingsError or PluginError."""
    if not (inspect.isclass(offered) and issubclass(offered, PluginSettings)):
        raise PluginError(f"register_settings returned {offered!r}, which is not a subclass of PluginSettings")
    if offered.prefix != plugin_prefix(name):
        raise PluginError(f"{offered.__name__}.prefix is {offered.prefix!r}, and must be {plugin_prefix(name)!r}")
    offered.read(os.environ)
    return offered


def answers(manager: pluggy.PluginManager, hook: str, plugin: Any) -> list[Any]:
    """Return a list with the result of ``hook`` of ``plugin``, or an empty list if the plugin has no such hook.

    Raises PluginError if the hook returned None.
    """
    caller = manager.subset_hook_caller(hook, [other for other in manager.get_plugins() if other is not plugin])
    answered: list[Any] = caller()
    if len(answered) < len(caller.get_hookimpls()):
        raise PluginError(f"{hook} returned None; is a return missing?")  # pluggy silently drops None
    return answered


def refuse_misspelt_hooks(plugin: Any) -> None:
    """Raise PluginError for a hookimpl that has the name of no hook, and for a hook that is not marked.

    pluggy silently accepts a misspelt hook and a hook that is not marked.
    """
    known = hooks()
    for name in dir(plugin):
        attribute = inspect.getattr_static(plugin, name, None)
        is_marked = hasattr(getattr(attribute, "__func__", attribute), IMPL_MARK)
        if is_marked and name not in known:
            raise PluginError(f"{name!r} is marked @hookimpl, but there is no such hook{suggestion(name, known)}")
        if name in known and not is_marked:
            raise PluginError(f"{name!r} has the name of a hook, but is not marked @hookimpl")


def hooks() -> list[str]:
    """Return the names of all hooks."""
    return [name for name, value in vars(hookspecs).items() if hasattr(value, f"{NAMESPACE}_spec")]


def checked(jobs: Any) -> list[Job]:
    """Check that each of ``jobs`` is a valid Job. Return the jobs."""
    if isinstance(jobs, str) or not isinstance(jobs, Iterable):
        raise PluginError(f"register_jobs returned {jobs!r}, which is not a list of jobs")
    found: list[Job] = list(jobs)
    for job in found:
        if not isinstance(job, Job):
            raise PluginError(f"register_jobs returned {job!r}, which is not a job; decorate it with @job(…)")
        arguments.adapters(job)
        secrets.refuse_wrong_secrets(job)
    return found


def refuse_contradicting_limits(jobs: Iterable[Job]) -> None:
    """Raise PluginError if two of a plugin's jobs declare a limit with different numbers.

    If jobs of two plugins do this, the smaller numbers apply, and ``rota check`` names the limit. This is not an error,
    since a plugin cannot know the limits of another plugin.
    """
    declared = ((job.name, limit.name, limit.numbers) for job in jobs for limit in job.limits)
    for name, owners in contradictions(declared).items():
        said = f"the jobs {' and '.join(owners)} declare the limit {name!r} with different numbers"
        raise PluginError(f"{said}; declare the same numbers, or give each limit its own name")


def around(middleware: Any) -> list[RunMiddleware]:
    """Check that each of ``middleware`` is a RunMiddleware, and that none is listed twice. Return the middleware."""
    if isinstance(middleware, str) or not isinstance(middleware, Iterable):
        raise PluginError(f"register_middleware returned {middleware!r}, which is not a list of RunMiddleware")
    found: list[RunMiddleware] = []
    for each in middleware:
        if not isinstance(each, RunMiddleware):
            hint = "; return an instance of it" if inspect.isclass(each) else ""
            raise PluginError(f"register_middleware returned {each!r}, which is not a RunMiddleware{hint}")
        if each in found:
            raise PluginError(f"register_middleware returned {each!r} twice; each run would be surrounded by it twice")
        found.append(each)
    return found


def wanted_schedules(jobs: Iterable[Job], answered: Iterable[Any]) -> Mapping[str, WantedSchedules]:
    """Check that the answer has a function for some of the ``jobs`` that are keyed, by name. Return the answer."""
    keyed = {job.name for job in jobs if job.keyed is not None}
    found: dict[str, WantedSchedules] = {}
    for answer in answered:
        if not isinstance(answer, Mapping):
            raise PluginError(f"register_schedules returned {answer!r}, which is not a dict of functions by job name")
        for name, read in answer.items():
            if name not in keyed:
                hint = suggestion(str(name), keyed)
                raise PluginError(
                    f"register_schedules names {name!r}, which is not a job of the plugin with keyed={hint}"
                )
            if not callable(read):
                raise PluginError(f"register_schedules returned {read!r} for {name!r}, which is not a function")
        found.update(answer)
    return found


def own_items(hook: str, answer: Any, kind: str, problem_of: Callable[[Any], str | None]) -> list[Any]:
    """Check that the answer of a hook is a list, and each of its items. Return the list."""
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        raise PluginError(f"{hook} returned {answer!r}, which is not a list of {kind}")
    found = list(answer)
    for each in found:
        if problem := problem_of(each):
            raise PluginError(f"{hook} returned {problem}")
    return found


def own_commands(commands: Any) -> list[Command]:
    """Check that each of ``commands`` is a valid command of a plugin. Return the commands."""
    return own_items("register_commands", commands, "Command", command_problem)


def own_routes(routes: Any) -> list[Route]:
    """Check that a plugin can bring each of ``routes``, and that no two are the same. Return the routes."""
    found: list[Route] = own_items("register_routes", routes, "Route", route_problem)
    if twice := [str(each) for each, count in Counter(map(str, found)).items() if count > 1]:
        raise PluginError(f"register_routes returned the route {twice[0]} twice")
    return found


def refuse_duplicates(plugins: list[Plugin]) -> list[Plugin]:
    """Return ``plugins``. If two of them declare the same job or command, both are marked as broken.

    Both plugins are refused, since it is unknown which of the two jobs is meant. The core is never refused, since no
    job runs without its tables.
    """
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for plugin in plugins:
        for declared in _names(plugin):
            owners[declared].append(plugin.name)
    twice = {declared: names for declared, names in owners.items() if len(names) > 1}
    return [_broken_by_duplicate(plugin, twice) for plugin in plugins]


def _names(plugin: Plugin) -> list[tuple[str, str]]:
    """Return the names of the plugin that no other plugin may have, each with its kind."""
    return [*(("job", job.name) for job in plugin.jobs), *(("command", each.name) for each in plugin.commands)]


def _broken_by_duplicate(plugin: Plugin, twice: dict[tuple[str, str], list[str]]) -> Plugin:
    shared = [declared for declared in _names(plugin) if declared in twice]
    if not shared or plugin.name == CORE:
        return plugin
    kind, name = shared[0]
    owners = " and ".join(repr(owner) for owner in twice[kind, name])
    return replace(plugin, error=f"{kind} name {name!r} is declared by {owners}; rename one, or uninstall one of them")
