"""Tables of commands: a row is one line, whatever its cells contain and however narrow the terminal is."""

import ast
from pathlib import Path

import pytest
from rich.cells import cell_len

from core.cli.tables import Column, lines
from core.observability.terminal_text import visible

CLI = Path(__file__).parents[2] / "core" / "cli"
COLUMNS = (
    Column("id"),
    Column("job"),
    Column("queue", rank=2),
    Column("note", rank=3, least=10),
    Column("took", rank=1),
)
ROW = ["4711", "cleanup-expired-flea-market-items", "maintenance", "a text that is rather long", "9.00 s"]


def table(room: int, *rows: list[str]) -> list[str]:
    heading, *found = lines(COLUMNS, rows or (ROW,), room)
    return [heading.replace("\x1b[4m", "").replace("\x1b[0m", ""), *found]


@pytest.mark.parametrize(
    ("room", "headings", "gone"),
    [
        (120, ["id", "job", "queue", "note", "took"], ""),
        (72, ["id", "job", "queue", "note", "took"], ""),
        (71, ["id", "job", "queue", "took"], "no room for: note"),
        (50, ["id", "job", "took"], "no room for: queue, note"),
        (46, ["id", "job"], "no room for: queue, note, took"),
        (10, ["id", "job"], "no room for: queue, note, took"),
    ],
)
def test_the_least_important_columns_are_left_out_and_names_stay_whole(room, headings, gone):
    heading, row, *after = table(room)

    assert heading.split() == headings
    assert "cleanup-expired-flea-market-items" in row
    assert gone[: room - 1] in "".join(after)
    assert bool(gone) == bool(after)
    assert len(row) <= room or headings == ["id", "job"]


def test_a_text_takes_the_room_there_is_and_ends_in_an_ellipsis():
    assert table(80)[1] == "4711  cleanup-expired-flea-market-items  maintenance  a text that is ra…  9.00 s"


def test_an_empty_column_is_the_first_to_go_and_is_not_missed():
    row = [*ROW[:-1], ""]

    assert table(69, row)[0].split() == ["id", "job", "queue", "note"]
    assert len(table(69, row)) == 2


def test_wide_characters_take_two_columns():
    _, row, _ = table(66, ["1", "表" * 20, "q", "注意" * 10, "1 s"])

    assert cell_len(row) <= 66
    assert "表" * 20 in row


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 表 🙂 👩\u200d💻", "plain ü 表 🙂 👩\u200d💻"),
        ("\x1b]52;c;cm0=\x07", "\\x1b]52;c;cm0=\\x07"),
        ("two\r\nlines\tand", "two\\r\\nlines\\tand"),
        ("c1 \x9b2J \x7f", "c1 \\x9b2J \\x7f"),
        ("\u202eevil\u2066\u200f", "\\u202eevil\\u2066\\u200f"),
        ("a\u2028b\u2029c\ud800", "a\\u2028b\\u2029c\\ud800"),
        ("tag \U000e0041", "tag \\U000e0041"),
    ],
)
def test_nothing_that_a_terminal_obeys_reaches_it(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_only_one_file_prints(path):
    """All text is printed by one module, so that no text reaches a terminal unescaped. ``Problem`` shows an error of a
    command.
    """
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]

    assert {"print", "click.echo", "click.secho"}.isdisjoint(calls) or path.name in {"output.py", "__init__.py"}
