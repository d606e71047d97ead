"""What a pause holds, as the command line names it: a job, a queue, a plugin, or everything."""

from collections.abc import Callable
from typing import Any

import click
from sqlalchemy import Connection

from core.errors import PauseError, UnknownJob, suggestion
from core.jobs.registry import EVERYTHING, Registry
from core.ledger import releases


def scope_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` the options that name a scope."""
    options = [
        click.argument("job", required=False),
        click.option("--queue", metavar="QUEUE", help="All jobs on this queue."),
        click.option("--plugin", metavar="PLUGIN", help="All jobs of this plugin."),
        click.option("--everything", is_flag=True, help="All jobs there are."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def chosen(job: str | None, queue: str | None, plugin: str | None, everything: bool) -> str:
    """The scope that was named. Raises click.UsageError unless it is one."""
    given = {"job": job, "queue": queue, "plugin": plugin}
    named = [f"{kind}:{name}" for kind, name in given.items() if name is not None]
    named += [EVERYTHING] if everything else []
    if len(named) != 1:
        instead = f", not {' and '.join(named)}" if named else ""
        raise click.UsageError(f"name one of a JOB, --queue, --plugin and --everything{instead}")
    return named[0]


def options_for(scope: str) -> str:
    """How ``scope`` is named on the command line."""
    kind, _, name = scope.partition(":")
    return {"job": name, EVERYTHING: "--everything"}.get(kind, f"--{kind} {name}")


def refuse_unknown(connection: Connection, registry: Registry, scope: str) -> None:
    """Raise UnknownJob or PauseError, with the nearest name, for what neither this nor a live process knows."""
    known = set().union(*registry.scopes.values(), *releases.scopes_of_jobs(connection).values())
    if scope in {*known, EVERYTHING}:
        return
    kind, _, name = scope.partition(":")
    nearest = suggestion(name, (other.partition(":")[2] for other in known if other.startswith(f"{kind}:")))
    raise (UnknownJob if kind == "job" else PauseError)(f"unknown {kind} {name!r}{nearest or '; see `rota jobs`'}")


def on_fast_lane(registry: Registry, scope: str) -> list[str]:
    """The jobs of ``scope`` that no pause holds, since they are on the fast lane."""
    return [job.name for job in registry if not job.ledger and scope in registry.scopes[job.name]]
