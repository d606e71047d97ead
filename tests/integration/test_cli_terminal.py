"""Commands on a terminal, and commands whose output cannot be written."""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from click.testing import CliRunner

from core import every, job
from core.cli import main
from tests.support.forked import BIN, Forked

HOSTILE = "\x1b]52;c;cm0gLXJm\x07\x1b[2J\u202e\x9b31m\n"
PROGRAM = "from core.cli import main; main(prog_name='rota')"
ROTA = [sys.executable, "-c", PROGRAM]


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run):
    """Close the day."""


@job("poll", queue="billing", ledger=False)
def poll(run):
    """Poll."""


@job("ask", queue="billing")
def ask(run):
    """Ask."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rota():
    return lambda *words: CliRunner().invoke(main, words, catch_exceptions=False)


def on_terminal(columns, *words):
    """Return the output of a command on a terminal of this width."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as read, open(theirs, "r+b", buffering=0) as terminal:
        command = forked(*words, output=terminal, source=terminal, COLUMNS=str(columns))
        terminal.close()
        written = b""
        with suppress(OSError):  # Linux reports the end of a terminal by this error
            while chunk := read.read(65536):
                written += chunk
    command.wait(60)
    return written.decode()


def piped(*words):
    """Return the output of a command whose output is a file."""
    with TemporaryFile() as output:
        forked(*words, output=output).wait(60)
        output.seek(0)
        return output.read().decode()


def forked(*words, output, source=None, **environ):
    """Start a command in this folder."""
    environ = {**os.environ, **environ}
    return Forked([str(BIN / "rota"), *words], environ=environ, cwd=Path.cwd(), output=output, source=source)


@pytest.fixture
def hostile(ledger, database):
    """A run, a pause and an entry of the audit whose texts contain control characters."""
    ledger.request("gone", key=HOSTILE, state="dead", reason="retries", error=HOSTILE, finished_at="now")
    values = "VALUES ('everything', :text, :text, 'infinity')"
    ledger.do(f"INSERT INTO rota_pauses (scope, reason, paused_by, until) {values}", text=HOSTILE)
    values = "VALUES (:text, 'cli', 'run', :text, '{}')"
    ledger.do(f"INSERT INTO rota_audit (actor, via, action, target, details) {values}", text=HOSTILE)


@pytest.mark.parametrize(
    "words",
    [
        ["runs"],
        ["pauses"],
        ["audit"],
        ["jobs"],
        ["check"],
        ["why", "gone", "--at", "NOW"],
        ["drop", "--job", "gone", "--dry-run"],
        ["run", "prune-runs"],
    ],
    ids=" ".join,
)
def test_what_strangers_wrote_is_shown_and_not_obeyed(hostile, ledger, words):
    words = [ledger.value("SELECT queued_at FROM rota_runs").isoformat() if word == "NOW" else word for word in words]

    written = on_terminal(400, *words)

    ours = re.compile(r"\x1b\[\d*m")  # colours and underlines
    for said in (piped(*words), ours.sub("", written).replace("\r\n", "\n")):
        assert "\\x1b]52;c;cm0gLXJm\\x07\\x1b[2J\\u202e\\x9b31m" in said
        assert set(said).isdisjoint("\x1b\x07\u202e\x9b")


def test_json_has_it_exactly(hostile):
    done = subprocess.run([*ROTA, "runs", "--json"], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout)[0]["key"] == HOSTILE


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("words", [["jobs"], ["plugins"], ["runs"]], ids=" ".join)
def test_a_row_is_a_line_on_a_terminal_and_names_are_whole(ledger, columns, words):
    name = "update-featured-task-experts-response-time"
    for _ in range(3):
        ledger.request(name, state="dead", reason="retries", error="ValueError: " + "no " * 99, finished_at="now")

    shown = re.sub(r"\x1b\[\d*m", "", on_terminal(columns, *words)).splitlines()

    assert all(len(line) <= columns for line in shown)
    if words == ["jobs"]:
        assert sum(line.startswith(f"{name}  ") for line in shown) == 1
        jobs = json.loads(piped("jobs", "--json"))
        assert len([line for line in shown if not line.startswith("no room")]) == 1 + len(jobs)
    if words == ["runs"]:
        assert sum(f"  {name}  " in line for line in shown) == 3


def test_a_pipe_gets_every_cell_with_a_tab_between_them(rota, use_jobs, database):
    use_jobs(close_day, poll, ask)

    rows = [line.split("\t") for line in rota("jobs").stdout.splitlines()]

    assert {len(row) for row in rows} == {8}
    assert all(cell == cell.strip() for row in rows for cell in row)


def test_the_fast_lane_and_a_pause_are_marked_where_the_next_slot_would_be(rota, use_jobs, database):
    use_jobs(close_day, poll, ask)
    rota("pause", "close-day")

    marked = {row[0]: row[4] for row in (line.split("\t") for line in rota("jobs").stdout.splitlines())}

    assert (marked["close-day"], marked["poll"], marked["ask"]) == ("paused", "fast lane", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["job"], "no such command 'job'; did you mean 'jobs'?"),
        (["chekc", "--live"], "no such command 'chekc'; did you mean 'check'?"),
        (["db", "statsu"], "no such command 'statsu'; did you mean 'status'?"),
        (["orphans", "adpot", "x"], "no such command 'adpot'; did you mean 'adopt'?"),
        (["zzz"], "no such command 'zzz'"),
    ],
)
def test_a_mistyped_command_is_wrong_usage_and_gets_a_suggestion(rota, words, said):
    done = rota(*words)

    assert done.exit_code == 2
    assert done.stderr.endswith(f"Error: {said}\n")


@pytest.mark.parametrize(
    "words",
    [["jobs", "--json"], ["jobs"], ["runs", "--json"], ["check", "--json"], ["--help"], ["runs", "--help"]],
    ids=" ".join,
)
def test_a_full_disk_is_told_in_a_line(database, words):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*ROTA, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (1, "rota: the answer cannot be written: No space left on device\n")


def test_a_full_disk_for_both_outputs_ends_with_1(database):
    with open("/dev/full", "w") as full:
        assert subprocess.run([*ROTA, "jobs", "--json"], stdout=full, stderr=full, check=False).returncode == 1


@pytest.mark.parametrize("words", [["jobs", "--json"], ["plugins"], ["check", "--json"]], ids=" ".join)
def test_a_reader_that_has_left_ends_it_quietly(database, words):
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run([*ROTA, *words], stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writes)

    assert (done.returncode, done.stderr) == (1, "")
