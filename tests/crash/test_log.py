"""The logs of real processes: JSON that programs can read, and that work never waits for the log."""

import json
import shlex
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import Any

import pytest

from core.observability.events import EVENTS
from tests.support.emitted import assert_as_declared, logged
from tests.support.eventually import eventually
from tests.support.supervised import Supervised, supervised

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

GRACE = 10
#: Lines that periodiq writes before it loads Rota.
NOT_OURS = "Starting Periodiq, a simple scheduler for Dramatiq."
SECONDS_OF_SUCCESSES = 'select(.event == "run.succeeded") | .seconds'


def install_broken_plugin(fleet) -> None:
    """Write the metadata that pip writes for a plugin, which cannot be imported."""
    site = fleet.folder / "site"
    (site / "broken-1.0.dist-info").mkdir()
    (site / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (site / "broken-1.0.dist-info" / "entry_points.txt").write_text("[rota.plugins]\nbroken = broken_plugin\n")
    (site / "broken_plugin.py").write_text("raise RuntimeError('no licence')\n")


def states(fleet, job: str) -> set[str]:
    return {run.state for run in fleet.runs(job)}


def seconds_of_successes(log: str) -> list[float]:
    """Return the durations as the command in the documentation does. Without jq, compute the same."""
    if shutil.which("jq") is None:
        return [line["seconds"] for line in map(json.loads, log.splitlines()) if line["event"] == "run.succeeded"]
    asked = ["jq", "-c", SECONDS_OF_SUCCESSES]
    answer = subprocess.run(asked, input=log, capture_output=True, text=True, timeout=60, check=True).stdout
    return [json.loads(line) for line in answer.splitlines()]


def test_every_line_of_workers_and_a_scheduler_is_json_and_has_what_is_documented(make_fleet):
    fleet = make_fleet(jobs="tick,touch,fail,fast", environ={"ROTA_LOG_FORMAT": "json", "ROTA_LOG_LEVEL": "DEBUG"})
    install_broken_plugin(fleet)
    scheduler = fleet.scheduler()
    with supervised(fleet, processes=2, threads=2) as worker:
        fleet.request("touch", 50)
        fleet.request("fail")
        fleet.send_fast("fast", fail=True)
        eventually(lambda: states(fleet, "fail") == {"dead"})
        eventually(lambda: states(fleet, "touch") == {"succeeded"} and len(fleet.effects("tick")) >= 3)
        eventually(lambda: list(logged(fleet.logs(), "message.dead")))
        assert worker.terminate() == 0
    assert fleet.terminate(scheduler) == 0

    log = "\n".join(line for line in fleet.logs().splitlines() if line and NOT_OURS not in line)
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.splitlines()]
    assert not [line for line in lines if not {"timestamp", "level", "event"} <= line.keys()]
    for line in lines:
        assert_as_declared(line["event"], line)
    names = {line["event"] for line in lines}
    assert {"plugin.broken", "plugin.failed", "run.failed", "message.dead", "worker.stopped"} <= names
    assert {line["state"] for line in lines if line["event"] == "run.failed"} == {"retrying", "dead"}
    seconds = seconds_of_successes(log)
    assert len(seconds) >= 53
    assert all(isinstance(each, float) and each > 0 for each in seconds)
    assert len(names & EVENTS.keys()) > 8


@contextmanager
def writing_to(fleet, redirection: str):
    """Yield a ``rota worker`` whose standard error is redirected by a shell."""
    rota = shlex.quote(str(fleet.bin / "rota"))
    command = f"exec {rota} worker --processes 2 --threads 2 --grace {GRACE} {redirection}"
    started = Supervised(fleet, fleet.start("/bin/bash", "-c", command))
    try:
        yield started.wait_for(2)
    finally:
        started.end()


@pytest.mark.parametrize(
    "redirection",
    ["2> >(head -n 3 > {seen})", "2> /dev/full", "2>&-"],
    ids=["its reader has gone", "its device is full", "it is closed"],
)
def test_a_log_that_cannot_be_written_keeps_nothing_from_working_and_ending(make_fleet, tmp_path, redirection):
    fleet = make_fleet(jobs="touch,fail", environ={"ROTA_LOG_FORMAT": "json"})
    seen = tmp_path / "seen"
    with writing_to(fleet, redirection.format(seen=shlex.quote(str(seen)))) as worker:
        fleet.request("touch", 100)
        fleet.request("fail")
        eventually(lambda: states(fleet, "touch") == {"succeeded"} and states(fleet, "fail") == {"dead"})
        before = worker.pids()
        fleet.request("touch", 100)
        eventually(lambda: states(fleet, "touch") == {"succeeded"})
        assert worker.pids() == before

        began = time.monotonic()
        assert worker.terminate() == 0
        assert time.monotonic() - began < GRACE
    assert {(run.crashes, run.failures) for run in fleet.runs("touch")} == {(0, 0)}
    assert not seen.exists() or len(seen.read_text().splitlines()) == 3
