"""How commands print: JSON for programs, tables for people, instants and spans as people say them."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import click

#: The option that every listing has.
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def print_json(value: Any) -> None:
    """Print ``value``; instants as ISO 8601 with their offset."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_jsonable))


def _jsonable(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", empty: str = "") -> None:
    """Print ``rows`` under ``columns``, or the sentence ``empty`` if there are none.

    Where nobody watches (a pipe, a file) every row is one line, however long.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption or None, caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if not table.row_count and empty:
        click.echo(empty)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)
        table.box = None
    with console.capture() as capture:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n")))


def local(instant: datetime | None, *, missing: str = "") -> str:
    """An instant on this machine's clock, to the second."""
    return f"{instant.astimezone():%Y-%m-%d %H:%M:%S}" if instant else missing


def local_zone(now: datetime) -> str:
    """What this machine calls its zone."""
    return now.astimezone().strftime("%Z")


def span(duration: timedelta) -> str:
    """A span as people say it: ``12 ms``, ``1.25 s``, ``42 s``, ``5 min``, ``3 h 20 min``, ``2 days 4 h``."""
    seconds = abs(duration.total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"
