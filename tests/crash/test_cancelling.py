"""A cancelled run commits nothing, ends when its function returns or its process dies, and never starts again."""

import json
import os
import random
import signal
import time

import pytest
from sqlalchemy import text

from core import database
from core.ledger import cancels
from core.worker.interruption import LEAVE_SECONDS
from tests.support.eventually import eventually
from tests.support.supervised import supervised

pytestmark = pytest.mark.crash

REQUEST = text("""
    INSERT INTO rota_runs (job, key, queue, args)
    SELECT 'busy', key, 'chaos', jsonb_build_object('how', CAST(:how AS text))
    FROM unnest(CAST(:keys AS text[])) AS key RETURNING id
""")
LOCAL = {"SCHEDULER_MODE": "local", "REDIS_URL": ""}


def request(fleet, how, *keys):
    """Request a run for each of ``keys``."""
    with fleet.engine.begin() as connection:
        run_ids = list(connection.execute(REQUEST, {"how": how, "keys": list(keys)}).scalars())
        connection.exec_driver_sql("NOTIFY rota_due")
    return run_ids


def cancel(fleet, *run_ids):
    """Cancel these runs. Return their states before the cancel."""
    with database.autocommit(fleet.engine) as connection:
        return [found.state for found in cancels.cancel(connection, run_ids, by="ann", reason="on purpose")]


def run_of(fleet, run_id):
    (row,) = fleet.rows("SELECT * FROM rota_runs WHERE id = :id", id=run_id)
    return row


def assert_cancelled(fleet, run_id, *, within=20.0):
    """Assert that the run ends as cancelled in its first attempt, and that its work was not committed."""
    eventually(lambda: run_of(fleet, run_id).state == "dead", within=within)
    row = run_of(fleet, run_id)
    assert (row.reason, row.error, row.attempt) == ("cancelled", "by ann: on purpose", 1)
    assert (row.failures, row.crashes) == (0, 0)
    assert fleet.effects("busy") == []
    assert fleet.rows("SELECT * FROM rota_cancels") == []


@pytest.mark.parametrize("mode", ["distributed", "local"])
def test_it_ends_soon_whatever_its_function_does(make_fleet, mode):
    ways = ["in steps", "in a statement", "swallowing"]
    fleet = make_fleet(jobs="busy,touch")
    with supervised(fleet, processes=1, **(LOCAL if mode == "local" else {})) as worker:
        before = worker.pids()
        run_ids = [request(fleet, how, how)[0] for how in ways]
        eventually(lambda: all(run_of(fleet, run_id).state == "running" for run_id in run_ids))

        assert cancel(fleet, *run_ids) == ["running"] * 3

        for run_id in run_ids:
            assert_cancelled(fleet, run_id)
        fleet.request("touch")
        eventually(lambda: fleet.effects("touch"))
        assert worker.pids() == before


def test_an_isolated_run_is_cancelled_too(make_fleet):
    fleet = make_fleet(jobs="busy")
    (run_id,) = request(fleet, "in steps", "a")
    fleet.suspect(run_id)
    with supervised(fleet, processes=1) as worker:
        assert fleet.next_start().pid not in worker.pids()

        assert cancel(fleet, run_id) == ["running"]

        eventually(lambda: run_of(fleet, run_id).reason == "cancelled")
        assert fleet.effects("busy") == []


def test_one_that_never_leaves_holds_its_key_until_it_is_named_and_its_process_replaced(make_fleet):
    fleet = make_fleet(jobs="busy,wait")
    with supervised(fleet, processes=1) as worker:
        (before,) = worker.pids()
        (run_id,) = request(fleet, "never leaving", "a")
        (other,) = fleet.request("wait")
        fleet.next_starts(2)
        (behind,) = request(fleet, "in steps", "a")

        assert cancel(fleet, run_id) == ["running"]
        cancelled_at = time.monotonic()
        while time.monotonic() < cancelled_at + LEAVE_SECONDS - 5:
            assert (run_of(fleet, run_id).state, run_of(fleet, behind).attempt) == ("running", 0)
            time.sleep(0.5)

        assert_cancelled(fleet, run_id, within=60)
        (told,) = [line for line in map(as_json, fleet.logs().splitlines()) if line.get("event") == "run.not_leaving"]
        assert (told["run"], "chaos_jobs.py" in told["place"]) == (run_id, True)
        eventually(lambda: worker.pids() and worker.pids() != [before], within=60)
        assert {fleet.next_start(within=60).run_id for _ in range(2)} == {behind, other}
        assert (run_of(fleet, other).failures, run_of(fleet, other).crashes) == (0, 0)
        assert cancel(fleet, behind) == ["running"]


def as_json(line):
    """Return a line of the log as JSON, or None if it is not JSON."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def test_one_whose_worker_is_killed_after_the_cancel_never_starts_again(make_fleet):
    fleet = make_fleet(jobs="busy")
    fleet.together(fleet.worker, fleet.worker)
    (run_id,) = request(fleet, "in one call", "a")
    started = fleet.next_start()

    assert cancel(fleet, run_id) == ["running"]
    assert run_of(fleet, run_id).state == "running"
    os.killpg(fleet.group_of(started.pid).pid, signal.SIGKILL)

    assert_cancelled(fleet, run_id)
    (attempt,) = fleet.rows("SELECT * FROM rota_attempts WHERE run_id = :id", id=run_id)
    assert (attempt.attempt, attempt.outcome) == (1, "cancelled")
    (next_one,) = request(fleet, "in steps", "a")
    assert fleet.next_start().run_id == next_one


def test_of_200_cancels_against_commits_none_that_found_its_run_running_has_its_effect(make_fleet):
    fleet = make_fleet(jobs="nap")
    fleet.together(*[lambda: fleet.worker(threads=4)] * 2)
    fleet.request("nap", 200)
    found = {}
    naps = "SELECT id FROM rota_runs WHERE job = 'nap'"
    while len(ended := fleet.rows(f"{naps} AND finished_at IS NOT NULL")) < 200:
        for row in fleet.rows(f"{naps} AND state = 'running' AND id <> ALL(:seen)", seen=[*found]):
            time.sleep(random.uniform(0, 0.02))  # before the commit, at the same time, or after it
            found[row.id] = cancel(fleet, row.id)
    assert len(ended) == 200

    committed = {effect.run_id for effect in fleet.effects("nap")}
    cancelled = {run_id for run_id, states in found.items() if states == ["running"]}
    assert committed.isdisjoint(cancelled)
    assert cancelled
    states = {row.id: (row.state, row.reason) for row in fleet.runs("nap")}
    assert {run_id for run_id, state in states.items() if state == ("dead", "cancelled")} == cancelled
    assert {run_id for run_id, state in states.items() if state == ("succeeded", None)} == committed


def test_the_99th_percentile_from_a_cancel_to_the_end_is_below_5_s(make_fleet, record_property):
    fleet = make_fleet(jobs="busy")
    fleet.together(*[lambda: fleet.worker(threads=8)] * 2)
    took = []
    for number in range(8):
        how = "in a statement" if number % 2 else "in steps"
        run_ids = request(fleet, how, *[f"{number}-{key}" for key in range(16)])
        fleet.next_starts(len(run_ids))
        asked_at = fleet.now()
        cancel(fleet, *run_ids)
        eventually(lambda run_ids=run_ids: all(run_of(fleet, run_id).finished_at for run_id in run_ids), within=60)
        took += [(run_of(fleet, run_id).finished_at - asked_at).total_seconds() for run_id in run_ids]

    took.sort()
    record_property("median_seconds", round(took[len(took) // 2], 3))
    record_property("p99_seconds", round(took[int(len(took) * 0.99)], 3))
    assert fleet.effects("busy") == []
    assert took[int(len(took) * 0.99)] < 5
