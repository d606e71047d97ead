"""``rota audit``: lists the actions of people."""

from typing import Any, get_args

import click

from core.cli import moments
from core.cli.environment import looking
from core.cli.output import as_json, print_json
from core.cli.tables import Column, print_table
from core.ledger import history
from core.ledger.audit import Action
from core.operations import audit as entries
from core.operations import times
from core.operations.wording import local, local_zone


@click.command()
@as_json
@click.option("--actor", metavar="NAME", help="Only actions of this person.")
@click.option(
    "--action",
    type=click.Choice(get_args(Action)),
    metavar="ACTION",
    help="Only actions of this kind, such as pause or retry.",
)
@click.option("--since", metavar="TIME", help="Only actions since this time: 2h (ago), 03:00, 2026-11-23T03:00.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
def audit(as_json: bool, actor: str | None, action: Action | None, since: str | None, limit: int) -> None:
    """List the actions of people, the newest first.

    \b
      rota audit --since 24h
      rota audit --action pause --json
    """
    with moments.read(), looking() as engine, engine.connect() as connection:
        now = history.now(connection)
        after = times.past(since, now, "since")
        found = entries.newest(connection, actor=actor, action=action, since=after, limit=limit)
    if as_json:
        print_json(found)
        return
    rows = [(local(e.at), e.actor, e.via, e.action, e.target, in_words(e.details)) for e in found]
    columns = (
        Column(f"when ({local_zone(now)})", rank=1),
        Column("who", rank=2),
        Column("via", rank=5),
        Column("what"),
        Column("to what", rank=3, least=40),
        Column("details", rank=4, least=16),
    )
    is_narrowed = actor is not None or action is not None or after is not None
    print_table(columns, rows, empty="no entry matches" if is_narrowed else "the audit has no entry")


def in_words(details: dict[str, Any]) -> str:
    """Return an entry's details in one line."""
    return ", ".join(f"{name}: {told(value)}" for name, value in details.items())


def told(value: Any) -> str:
    """Return the value of a detail as text."""
    if isinstance(value, dict):
        return " ".join(f"{name} {part}" for name, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
