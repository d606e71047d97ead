"""The options that select runs, by their ids or by conditions."""

from collections.abc import Callable
from typing import Any

import click

from core.operations.selection import Selection

#: The id of a run.
ID = click.IntRange(min=1, max=2**63 - 1)


def selecting(command: Callable[..., Any], *, by_reason: str = "--reason") -> Callable[..., Any]:
    """Add the argument ``ids`` and the options that select runs to ``command``.

    ``by_reason`` is the name of the option that selects runs by their reason.
    """
    most = click.option("--limit", type=click.IntRange(min=1), help="At most this many runs, the oldest first.")
    return click.argument("ids", nargs=-1, type=ID, metavar="[ID]...")(filtering(most(command), by_reason=by_reason))


def filtering(command: Callable[..., Any], *, by_reason: str = "--reason") -> Callable[..., Any]:
    """Add the options with conditions on runs to ``command``.

    ``by_reason`` is the name of the option that selects runs by their reason.
    """
    options = [
        click.option("--job", metavar="JOB", help="Runs of this job."),
        click.option("--plugin", metavar="PLUGIN", help="Runs of this plugin's jobs."),
        click.option("--queue", metavar="QUEUE", help="Runs on this queue."),
        click.option("--since", metavar="TIME", help="Runs that ended (or were queued) after this: 2h (ago), 03:00."),
        click.option("--until", metavar="TIME", help="Runs that ended (or were queued) before this time."),
        click.option("--key", metavar="KEY", help="Runs of this key."),
        click.option("--arg", "args", multiple=True, metavar="NAME:VALUE", help="Runs with this argument."),
        click.option("--error", metavar="TEXT", help="Runs whose error contains this text."),
        click.option(by_reason, "reason", metavar="REASON", help="Runs with this reason, such as crashes."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def selection(**chosen: Any) -> Selection:
    """Make a Selection from a command's options. Raises click.UsageError unless they have either ids or conditions."""
    found = Selection(**chosen)
    if not found.is_one_way:
        raise click.UsageError("give the runs' ids, or select runs by --job, --queue, --reason or another option")
    return found
