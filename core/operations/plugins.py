"""The installed plugins, and the outcome of loading each plugin."""

from core.jobs import registry as loaded
from core.jobs.registry import Registry
from core.operations.json_shape import Shape


class Plugin(Shape):
    """An installed plugin. The jobs of a broken plugin are neither in the registry nor here."""

    name: str
    distribution: str
    version: str
    state: str
    jobs: list[str]
    #: The file names of the plugin's revisions, in order. ``rota db status`` shows the database's revision.
    migrations: list[str]
    error: str | None


def listed(registry: Registry) -> list[Plugin]:
    """Return every installed plugin: loaded, disabled or broken."""
    return [shape(plugin) for plugin in registry.plugins]


def shape(plugin: loaded.Plugin) -> Plugin:
    """Return a plugin as JSON."""
    return Plugin(
        name=plugin.name,
        distribution=plugin.distribution,
        version=plugin.version,
        state=plugin.state,
        jobs=[] if plugin.error else [job.name for job in plugin.jobs],
        migrations=sorted(path.stem for path in plugin.migrations.glob("[!_]*.py")) if plugin.migrations else [],
        error=plugin.error,
    )
