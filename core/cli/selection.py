"""Which runs ``rota retry`` and ``rota drop`` are about, as options."""

from collections.abc import Callable
from typing import Any

import click

from core.operations.selection import Selection


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` what chooses runs: ids, and options for a filter."""
    options = [
        click.argument("ids", nargs=-1, type=click.IntRange(min=1, max=2**63 - 1), metavar="[ID]..."),
        click.option("--job", metavar="JOB", help="Those of this job."),
        click.option("--plugin", metavar="PLUGIN", help="Those of this plugin's jobs."),
        click.option("--queue", metavar="QUEUE", help="Those on this queue."),
        click.option("--since", metavar="TIME", help="Those that ended, or were queued, since: 2h (ago), 03:00."),
        click.option("--until", metavar="TIME", help="Those that ended, or were queued, before."),
        click.option("--error", metavar="TEXT", help="Those whose error has this in it."),
        click.option("--reason", metavar="REASON", help="Those with this reason, such as crashes."),
        click.option("--limit", type=click.IntRange(min=1), help="The oldest of them, at most this many."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def selection(**chosen: Any) -> Selection:
    """What the options describe. Raises click.UsageError if that is nothing, or two things."""
    found = Selection(**chosen)
    if not found.is_one_way:
        raise click.UsageError("name runs by their ids, or choose them by --job, --queue, --reason or the like")
    return found
