"""``rota pauses``: what is paused now; and how the other commands speak of it."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from sqlalchemy import Connection

from core.cli.output import as_json, local, local_zone, print_json, print_table
from core.cli.surroundings import ledger
from core.jobs.registry import EVERYTHING
from core.ledger import history
from core.ledger import pauses as found_pauses
from core.ledger.pauses import Pause
from core.plugins import loading


@click.command()
@as_json
def pauses(as_json: bool) -> None:
    """List the pauses that are active.

    \b
      rota pauses
      rota pauses --json | jq '.[].scope'
    """
    with ledger() as engine, engine.connect() as connection:
        found = found_pauses.active(connection)
        now = history.now(connection)
    if as_json:
        print_json([described(pause) for pause in found])
        return
    columns = ("what", "by", "since", "until", f"why (times in {local_zone(now)})")
    rows = [
        (each.scope, each.paused_by, local(each.paused_at), local(each.until, missing="resumed"), each.reason or "")
        for each in found
    ]
    print_table(columns, rows, empty="nothing is paused")


def described(pause: Pause) -> dict[str, Any]:
    """A pause as JSON tells it; its names are a promise."""
    return {name: value for name, value in asdict(pause).items() if name != "id"}


def in_words(pause: Pause, at: Callable[[datetime], str] = local) -> str:
    """``paused by ann since … until …: the bank is down``; a pause of more than a job says of what."""
    what = "" if pause.scope.startswith("job:") else f" ({pause.scope})"
    until = f" until {at(pause.until)}" if pause.until else ""
    reason = f": {pause.reason}" if pause.reason else ""
    return f"paused{what} by {pause.paused_by} since {at(pause.paused_at)}{until}{reason}"


def of_job(connection: Connection, job: str) -> list[Pause]:
    """The pauses that hold ``job`` now; of one that is not loaded here, as far as can be told."""
    scopes = loading.current().scopes.get(job, (EVERYTHING, f"job:{job}"))
    return found_pauses.of_scopes(found_pauses.active(connection), scopes)
