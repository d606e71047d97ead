"""``rota plugins``: lists the installed plugins, and the outcome of loading each plugin."""

import click

from core.cli.output import as_json, print_json
from core.cli.tables import Column, print_table
from core.operations import plugins as operations
from core.operations.plugins import Plugin
from core.plugins import loading


@click.command()
@as_json
def plugins(as_json: bool) -> None:
    """List the plugins: loaded, disabled, or broken with the reason.

    The exit status is 0 even if a plugin is broken. In that case `rota check` fails.
    """
    found = operations.listed(loading.current())
    if as_json:
        print_json(found)
        return
    columns = (
        Column("plugin"),
        Column("distribution", rank=4),
        Column("version", rank=2),
        Column("state"),
        Column("jobs", rank=3),
        Column("newest migration", rank=5),
        Column("error", rank=1, least=16),
    )
    print_table(columns, [in_a_row(plugin) for plugin in found])


def in_a_row(plugin: Plugin) -> tuple[str, ...]:
    """Return a plugin as a row of the table."""
    named = (plugin.name, plugin.distribution, plugin.version, plugin.state)
    newest = plugin.migrations[-1] if plugin.migrations else ""
    return (*named, str(len(plugin.jobs)), newest, plugin.error or "")
