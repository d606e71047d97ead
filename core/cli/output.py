"""How commands print: JSON for programs, tables for people."""

import json
from collections.abc import Iterable, Sequence

import click

from core.operations.shape import Shape, jsonable

#: The option that every listing has.
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def print_json(answer: Shape | Sequence[Shape]) -> None:
    """Print ``answer``, exactly as it is."""
    click.echo(json.dumps(jsonable(answer), indent=2, ensure_ascii=False))


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
