"""Finds ``ROTA_…`` variables that neither the core nor a plugin reads.

Most of them belong to a plugin that was removed. They are not errors, since the removal of a plugin must not stop the
other plugins. ``core/settings.py`` refuses misspelt settings of the core.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core import settings
from core.jobs.registry import Plugin, Registry
from core.settings import plugin_prefix


@dataclass(frozen=True, slots=True)
class Unread:
    """A variable that is set but never read."""

    variable: str
    #: The problem, without the variable's value, which may be a secret.
    why: str


def variables(environ: Mapping[str, str], registry: Registry) -> Iterator[Unread]:
    """Yield the variables in ``environ`` that begin with ``ROTA_`` and that neither the core nor a plugin reads.

    Variables with the prefix of a disabled or broken plugin are left out, since its settings are unknown.
    """
    for name in settings.unknown(environ):
        plugin = owner(name, registry)
        if plugin is None:
            yield Unread(name, "is not a setting of the core or of an installed plugin")
        elif plugin.state == "loaded" and name not in read_by(plugin):
            yield Unread(name, f"is not a setting of plugin {plugin.name!r}")


def owner(variable: str, registry: Registry) -> Plugin | None:
    """Return the plugin whose prefix ``variable`` has. If two plugins match, return the plugin with the longer name."""
    named = (plugin for plugin in registry.plugins if variable.startswith(plugin_prefix(plugin.name)))
    return max(named, key=lambda plugin: len(plugin.name), default=None)


def read_by(plugin: Plugin) -> set[str]:
    """Return the variables that a plugin reads."""
    return set(plugin.settings.variables()) if plugin.settings else set()
