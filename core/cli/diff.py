"""``rota diff``: compares the jobs that are installed here with the last release, and counts runs that do not fit."""

from collections.abc import Iterator
from typing import Any

import click

from core.cli.environment import looking
from core.cli.output import as_json, print_json, say
from core.operations import releases
from core.operations.releases import Difference
from core.plugins import loading


@click.command()
@as_json
@click.pass_context
def diff(ctx: click.Context, as_json: bool) -> None:
    """Show the changes of jobs since the last release that ran against this database.

    Compares the jobs that are installed here, with their options and arguments, with the jobs of the last release that
    ran. Counts waiting and dead runs of jobs that are not installed here, and waiting runs whose arguments do not fit
    the installed job. Exit status 1 if a job is removed or there are such runs, otherwise 0, so that a deploy can
    depend on it.

    \b
      rota diff && systemctl restart rota-worker
      rota diff --json | jq '.removed'
    """
    with looking() as engine, engine.connect() as connection:
        found = releases.compare(connection, loading.current())
    if as_json:
        print_json(found)
    else:
        say(*list(lines(found)) or ["no release has run here yet" if found.is_first else "nothing changed"])
    if not found.is_harmless:
        ctx.exit(1)


def lines(found: Difference) -> Iterator[str]:
    """Yield the difference as lines of text."""
    yield from (f"+ {job}" for job in found.added)
    yield from (f"- {job}" for job in found.removed)
    for job, fields in found.changed.items():
        yield f"~ {job}"
        yield from (f"    {name}: {told(before)} → {told(here)}" for name, (before, here) in fields.items())
    for job, count in found.misfits.items():
        runs = "1 run waits" if count == 1 else f"{count} runs wait"
        yield f"! {job}: {runs} with arguments that do not fit here; let workers of the old release finish them"
    for job, states in found.left_behind.items():
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        yield f"! {job}: {counts}, but the job is not installed here"


def told(value: Any) -> str:
    """Return a field's value as text. Whole seconds have no fraction."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
