"""Everything a plugin may offer, one function per offer. Our own plugins use these and nothing else.

A plugin is a class, a module or an object named by an entry point in the group ``rota.plugins``; its methods marked
``@hookimpl`` answer these hooks. A hook that raises breaks its own plugin and no other: the plugin is reported by log,
metrics and ``rota plugins``, and none of its jobs is loaded.
"""

from collections.abc import Sequence
from pathlib import Path

import pluggy

from core.jobs.job import Job
from core.jobs.middleware import RunMiddleware
from core.jobs.plugin_settings import PluginSettings

NAMESPACE = "rota"

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


@hookspec
def register_jobs() -> Sequence[Job]:  # type: ignore[empty-body]
    """Return the plugin's jobs. Called once, when the plugin is loaded."""


@hookspec
def register_migrations() -> Path:  # type: ignore[empty-body]
    """Return the folder of the plugin's Alembic revisions. Called once, when the plugin is loaded.

    The files need no ``env.py``; each plugin's history has a version table of its own.
    """


@hookspec
def register_settings() -> type[PluginSettings]:  # type: ignore[empty-body]
    """Return the class of the plugin's settings. Called once, when the plugin is loaded.

    A plugin whose environment does not fit them is broken, and the message names every variable that is wrong.
    """


@hookspec
def register_middleware() -> Sequence[RunMiddleware]:  # type: ignore[empty-body]
    """Return what is to surround runs, outermost first: each run of the plugin's own jobs, or of every job.

    Called once, when the plugin is loaded. Returning one object twice breaks the plugin.
    """
