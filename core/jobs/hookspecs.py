"""All hooks that a plugin may implement. Rota's own plugins use only these hooks.

A plugin is a class, a module or an object that an entry point in the group ``rota.plugins`` names. Its functions marked
``@hookimpl`` implement the hooks. If a hook raises, only its own plugin is broken: log, metrics and ``rota plugins``
report it, and none of its jobs is loaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pluggy

from core.jobs.commands import Command
from core.jobs.job import Job
from core.jobs.keyed import WantedSchedules
from core.jobs.middleware import RunMiddleware
from core.jobs.plugin_settings import PluginSettings
from core.jobs.routes import Route

NAMESPACE = "rota"

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


@hookspec
def register_jobs() -> Sequence[Job]:  # type: ignore[empty-body]
    """Return the plugin's jobs. Called once, when the plugin is loaded."""


@hookspec
def register_migrations() -> Path:  # type: ignore[empty-body]
    """Return the folder of the plugin's Alembic revisions. Called once, when the plugin is loaded.

    The folder needs no ``env.py``. Each plugin has its own version table.
    """


@hookspec
def register_settings() -> type[PluginSettings]:  # type: ignore[empty-body]
    """Return the class of the plugin's settings. Called once, when the plugin is loaded.

    If a variable has a wrong value, the plugin is broken, and the message names every such variable.
    """


@hookspec
def register_middleware() -> Sequence[RunMiddleware]:  # type: ignore[empty-body]
    """Return the plugin's middleware, the outermost first. It surrounds the runs of the plugin's own jobs, or of all
    jobs.

    Called once, when the plugin is loaded. Returning one object twice breaks the plugin.
    """


@hookspec
def register_schedules() -> Mapping[str, WantedSchedules]:  # type: ignore[empty-body]
    """Return functions that read the schedules which the keys of the plugin's jobs must have, by the names of the jobs.

    Called once, when the plugin is loaded. If a name is not that of a job of this plugin with ``keyed``, the plugin is
    broken. Each function gets a session and returns an iterable of KeySchedule, for example a generator over a query.
    `rota schedules sync` calls it, and so does the daily job ``check-schedules``, which reports differences. If a
    function raises, nothing is changed.
    """


@hookspec
def register_commands() -> Sequence[Command]:  # type: ignore[empty-body]
    """Return the commands that the plugin adds to ``rota``. Called once, when the plugin is loaded.

    If a command has the name of one of Rota's own commands, the plugin is broken. If two plugins add commands with the
    same name, both plugins are broken. The hook must not import click: the module of a command is imported when the
    command is used.
    """


@hookspec
def register_routes() -> Sequence[Route]:  # type: ignore[empty-body]
    """Return the plugin's own routes of the HTTP service. Called once, when the plugin is loaded, in every process.

    The routes are served below ``/api/v1/plugins/NAME``, with the authentication, roles and limits of Rota's own
    routes. Their functions are imported when ``rota web`` starts. If a function cannot be used, none of the plugin's
    routes is served.
    """
