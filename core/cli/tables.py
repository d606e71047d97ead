"""Prints tables, one line per row.

If a table is too wide for the terminal, the least important columns are left out. Names are never cut. In a pipe or a
file, a row has all its cells, unchanged and separated by tabs.
"""

import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import click

from core.cli.output import say, write
from core.observability.terminal_text import visible

GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column and its importance."""

    heading: str
    #: 0 if the column is always shown. Of the other columns, the column with the greatest rank is left out first.
    rank: int = 0
    #: The smallest width to which a text may be cut, with an ellipsis; None if it must not be cut.
    least: int | None = None


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, empty: str = "") -> None:
    """Print ``rows`` under ``columns``, or the sentence ``empty`` if there are none."""
    cells = [[visible(cell) for cell in row] for row in rows]
    if not cells and empty:
        say(empty)
    elif sys.stdout.isatty():
        write("\n".join(lines(columns, cells, shutil.get_terminal_size().columns)))
    else:
        write("\n".join("\t".join(row) for row in [[column.heading for column in columns], *cells]))


def lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> list[str]:
    """Return the lines of the table for a terminal of ``room`` columns, with a note about columns that are left out."""
    widths = fitted(columns, rows, room)
    heading = line([column.heading for column in columns], widths)
    left_out = [columns[at].heading for at, width in enumerate(widths) if not width and is_filled(rows, at)]
    found = [click.style(heading, underline=True), *(line(row, widths) for row in rows)]
    note = f"no room for: {', '.join(left_out)}"
    return found + ([click.style(sized(note, min(room, width_of(note))), dim=True)] if left_out else [])


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return the width of each column, 0 for a column that is left out."""
    full = [max(map(width_of, [column.heading, *(row[at] for row in rows)])) for at, column in enumerate(columns)]
    least = [min(wide, column.least or wide) for wide, column in zip(full, columns, strict=True)]
    kept = list(range(len(columns)))
    while (spare := room - sum(least[at] for at in kept) - len(GAP) * (len(kept) - 1)) < 0:
        if not (droppable := [at for at in kept if columns[at].rank]):
            break
        kept.remove(max(droppable, key=lambda at: (not is_filled(rows, at), columns[at].rank)))
    widths = [least[at] if at in kept else 0 for at in range(len(columns))]
    for at in sorted(kept, key=lambda at: columns[at].rank):
        more = max(min(full[at] - least[at], spare), 0)
        widths[at], spare = widths[at] + more, spare - more
    return widths


def is_filled(rows: Sequence[Sequence[str]], at: int) -> bool:
    """Return whether a column has a cell that is not empty."""
    return any(row[at] for row in rows)


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return one row of the table as a line."""
    return GAP.join(sized(cell, width) for cell, width in zip(cells, widths, strict=True) if width).rstrip()


def sized(cell: str, width: int) -> str:
    """Return ``cell``, cut or filled to exactly ``width`` columns."""
    from rich.cells import set_cell_size

    if width_of(cell) <= width:
        return set_cell_size(cell, width)
    return set_cell_size(set_cell_size(cell, width - 1).rstrip() + "…", width)


def width_of(cell: str) -> int:
    """Return how many columns of a terminal ``cell`` takes."""
    from rich.cells import cell_len

    return cell_len(cell)
