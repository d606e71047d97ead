"""``rota plugins``: what is installed, and what came of loading it."""

from typing import Any

import click

from core.cli.output import as_json, print_json, print_table
from core.jobs.registry import Plugin
from core.plugins import loading as loader


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
    headings = ("plugin", "distribution", "version", "state", "jobs", "migrations", "error")
    print_table(headings, [in_a_row(plugin) for plugin in found])


def described(plugin: Plugin) -> dict[str, Any]:
    """A plugin as JSON tells it. The jobs of a broken one are not in the registry, and not here."""
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "state": plugin.state,
        "jobs": [] if plugin.error else [job.name for job in plugin.jobs],
        "migrations": migrations(plugin),
        "error": plugin.error,
    }


def migrations(plugin: Plugin) -> list[str]:
    """The names of its revisions' files, in order; how far the database is, `rota db status` tells."""
    return sorted(path.stem for path in plugin.migrations.glob("[!_]*.py")) if plugin.migrations else []


def in_a_row(plugin: dict[str, Any]) -> tuple[Any, ...]:
    """A plugin as a table tells it."""
    named = (plugin[name] for name in ("name", "distribution", "version", "state"))
    newest = plugin["migrations"][-1] if plugin["migrations"] else ""
    return (*named, ", ".join(plugin["jobs"]), newest, plugin["error"] or "")
