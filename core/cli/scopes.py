"""The options that name the scope of a pause: a job, a queue, a plugin, or everything."""

from collections.abc import Callable
from typing import Any

import click

from core.jobs.registry import EVERYTHING


def scope_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a scope to ``command``."""
    options = [
        click.argument("job", required=False),
        click.option("--queue", metavar="QUEUE", help="All jobs on this queue."),
        click.option("--plugin", metavar="PLUGIN", help="All jobs of this plugin."),
        click.option("--everything", is_flag=True, help="All jobs."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def chosen(job: str | None, queue: str | None, plugin: str | None, everything: bool) -> str:
    """Return the scope that the options name. Raises click.UsageError unless they name exactly one."""
    given = {"job": job, "queue": queue, "plugin": plugin}
    named = [f"{kind}:{name}" for kind, name in given.items() if name is not None]
    named += [EVERYTHING] if everything else []
    if len(named) != 1:
        instead = f", not {' and '.join(named)}" if named else ""
        raise click.UsageError(f"name one of a JOB, --queue, --plugin and --everything{instead}")
    return named[0]
