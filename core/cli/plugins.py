"""``rota plugins``: what is installed, and what came of loading it."""

from typing import Any

import click

from core import plugins as loader
from core.cli.output import as_json, print_json, print_table
from core.registry import Plugin


@click.command()
@as_json
def plugins(as_json: bool) -> None:
    """List the plugins, loaded, disabled or broken, and why.

    Listing succeeds even then; `rota check` is the one that says no.
    """
    found = [described(plugin) for plugin in loader.current().plugins]
    if as_json:
        print_json(found)
        return
    rows = [
        (p["name"], p["distribution"], p["version"], p["state"], ", ".join(p["jobs"]), p["error"] or "") for p in found
    ]
    print_table(("plugin", "distribution", "version", "state", "jobs", "error"), rows)


def described(plugin: Plugin) -> dict[str, Any]:
    """A plugin as JSON tells it. The jobs of a broken one are not in the registry, and not here."""
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "state": plugin.state,
        "jobs": [] if plugin.error else [job.name for job in plugin.jobs],
        "error": plugin.error,
    }
