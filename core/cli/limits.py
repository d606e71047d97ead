"""``rota limits``: lists the limits of jobs with their use."""

import click

from core.cli.environment import looking
from core.cli.output import as_json, print_json
from core.cli.tables import Column, print_table
from core.ledger import history
from core.operations import limits as operations
from core.operations.limits import LimitUse, size
from core.operations.wording import local, local_zone


@click.command()
@click.option("--limit", "most", type=click.IntRange(1), default=100, show_default=True, help="List at most this many.")
@as_json
def limits(most: int, as_json: bool) -> None:
    """List the limits of jobs: how many runs are at work, how many wait, and until when a limit is closed.

    Limits with the most waiting runs come first. The numbers are the smallest that a live process declares.

    \b
      rota limits
      rota limits --json | jq '.[] | select(.waiting > 0)'
    """
    with looking() as engine, engine.connect() as connection:
        found, now = operations.listed(connection, most), history.now(connection)
    if as_json:
        print_json(found)
    else:
        print_table(columns(local_zone(now)), [row(use) for use in found], empty="no job has a limit")


def columns(zone: str) -> list[Column]:
    """Return the columns, with times in ``zone``."""
    return [
        Column("limit"),
        Column("size", rank=2),
        Column("at work", rank=1),
        Column("may start", rank=4),
        Column("waiting"),
        Column(f"closed until ({zone})"),
        Column("why closed", rank=3, least=12),
    ]


def row(use: LimitUse) -> tuple[str, ...]:
    """Return a limit as a row."""
    tokens = f"{max(use.tokens, 0):.0f}" if use.tokens is not None else ""
    until = local(use.closed_until) if use.closed_until else ""
    return (use.name, size(use), str(use.running), tokens, str(use.waiting), until, use.closed_reason or "")
