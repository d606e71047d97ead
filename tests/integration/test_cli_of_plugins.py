"""Commands of plugins: they are imported when they are used, and have no names of Rota's own commands."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from core.cli import main
from core.plugins import loading

HOOK = """
from core import Command, hookimpl

@hookimpl
def register_commands():
    return [
        Command("shelves", "shop_commands_of_a_test:shelves", "List the shelves."),
        Command("broken-one", "shop_commands_of_a_test:nothing", "Cannot be imported."),
        Command("no-command", "shop_commands_of_a_test:RAISED", "Is none."),
    ]
"""
COMMANDS = """
import datetime
import click
from sqlalchemy import text
from core import RotaError, command_session, print_rows

RAISED = "on purpose"

@click.group()
def shelves():
    "Shelves."

@shelves.command("list")
@click.option("--json", "as_json", is_flag=True)
def listed(as_json):
    with command_session() as session:
        session.execute(text("CREATE TABLE IF NOT EXISTS shelves (id int, name text, made_at timestamptz)"))
        rows = [dict(row) for row in session.execute(text("SELECT * FROM shelves ORDER BY id")).mappings()]
    print_rows(rows, ["name", "id"], as_json=as_json, empty="no shelves")

@shelves.command()
@click.option("--fail", is_flag=True)
def fill(fail):
    with command_session() as session:
        session.execute(text("CREATE TABLE IF NOT EXISTS shelves (id int, name text, made_at timestamptz)"))
        session.execute(text("INSERT INTO shelves VALUES (1, E'a\\\\u0007b', '2026-01-05 12:00 UTC')"))
        if fail:
            raise RotaError("the shelf is full")
"""
NOTHING_OF_PLUGINS = """
import sys
from core.cli import main
try: main(sys.argv[1:], prog_name="rota")
except SystemExit: pass
print([name for name in sys.modules if name.split(".")[0] == "plugins"], file=sys.stderr)
"""


@pytest.fixture
def rota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: None) -> Iterator[Callable[..., Result]]:
    """Return the command line, with a plugin that has three commands."""
    (tmp_path / "shop_of_a_test.py").write_text(HOOK)
    (tmp_path / "shop_commands_of_a_test.py").write_text(COMMANDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with loading.using(loading.load([EntryPoint("shop", "shop_of_a_test", loading.GROUP)])):
        yield lambda *words: CliRunner().invoke(main, words, catch_exceptions=False)
    for name in ("shop_of_a_test", "shop_commands_of_a_test"):
        sys.modules.pop(name, None)


def test_the_overview_has_them_in_a_section_of_their_own(rota):
    told = rota("--help").stdout

    assert told.index("Commands:") < told.index("Commands of plugins:") < told.index("List the shelves.")
    assert "shop_commands_of_a_test" not in sys.modules


def test_what_a_command_writes_is_committed_at_its_end(rota):
    assert rota("shelves", "list").stdout == "no shelves\n"
    assert rota("shelves", "fill").exit_code == 0

    assert rota("shelves", "list").stdout.splitlines() == ["name\tid", "a\\x07b\t1"]
    (row,) = json.loads(rota("shelves", "list", "--json").stdout)
    assert (row["id"], row["name"], row["made_at"][:10]) == (1, "a\x07b", "2026-01-05")


def test_an_error_is_one_line_and_nothing_is_written(rota):
    failed = rota("shelves", "fill", "--fail")

    assert (failed.exit_code, failed.stderr) == (1, "rota: the shelf is full\n")
    assert rota("shelves", "list").stdout == "no shelves\n"


def test_a_command_that_cannot_be_imported_names_its_plugin(rota):
    missing, other = rota("broken-one"), rota("no-command")

    assert missing.exit_code == other.exit_code == 1
    assert "rota: plugin 'shop': its command 'broken-one' cannot be imported: AttributeError: " in missing.stderr
    assert "is 'on purpose', which is not a click command" in other.stderr


def test_a_misspelt_one_is_suggested(rota):
    misspelt = rota("shelfes")

    assert (misspelt.exit_code, "did you mean 'shelves'?" in misspelt.stderr) == (2, True)


def test_a_database_that_is_away_is_told_in_one_line(rota, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")

    away = rota("shelves", "list")

    assert away.exit_code == 1
    assert away.stderr.startswith("rota: PostgreSQL cannot be reached: ")


@pytest.mark.parametrize("words", [("--version",), ("run", "--help"), ("plugins", "--help")])
def test_rotas_own_commands_import_no_plugin_for_it(words):
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_OF_PLUGINS, *words], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.stderr.strip() == "[]"
