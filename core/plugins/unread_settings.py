"""Variables of the environment that nobody reads: mostly, a plugin that is gone has left them behind.

They stop nothing, since taking a plugin away must not stop the others; what is misspelt is refused elsewhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core import settings
from core.jobs.registry import Plugin, Registry
from core.settings import plugin_prefix


@dataclass(frozen=True, slots=True)
class Unread:
    """A variable that is set and that nothing reads."""

    variable: str
    #: What is wrong, without its value, which may be a secret.
    why: str


def variables(environ: Mapping[str, str], registry: Registry) -> Iterator[Unread]:
    """The variables in ``environ`` that begin as ours do, and that neither the core nor a plugin reads.

    Nobody can tell what a disabled or broken plugin reads, so what begins as its settings do is left to it.
    """
    for name in settings.unknown(environ):
        plugin = owner(name, registry)
        if plugin is None:
            yield Unread(name, "is not a setting, and of no plugin that is installed")
        elif plugin.state == "loaded" and name not in read_by(plugin):
            yield Unread(name, f"is not a setting of plugin {plugin.name!r}")


def owner(variable: str, registry: Registry) -> Plugin | None:
    """The plugin with whose prefix ``variable`` begins: of two, that of the longer name."""
    named = (plugin for plugin in registry.plugins if variable.startswith(plugin_prefix(plugin.name)))
    return max(named, key=lambda plugin: len(plugin.name), default=None)


def read_by(plugin: Plugin) -> set[str]:
    """The variables that a plugin reads."""
    return set(plugin.settings.variables()) if plugin.settings else set()
