"""``rota plugins``: what is installed, and what came of loading it."""

import click

from core.cli.output import as_json, print_json
from core.cli.tables import Column, print_table
from core.operations import plugins as operations
from core.operations.plugins import Plugin
from core.plugins import loading


@click.command()
@as_json
def plugins(as_json: bool) -> None:
    """List the plugins, loaded, disabled or broken, and why.

    Listing succeeds even then; `rota check` is the one that says no.
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
    """A plugin as a table tells it."""
    named = (plugin.name, plugin.distribution, plugin.version, plugin.state)
    newest = plugin.migrations[-1] if plugin.migrations else ""
    return (*named, str(len(plugin.jobs)), newest, plugin.error or "")
