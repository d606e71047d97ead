"""A plan for many dead runs is carried out at a rate, while the HTTP service and the worker are killed and started."""

import json
import os
import time
import urllib.request
from contextlib import suppress

import pytest
from sqlalchemy import text

from tests.support.eventually import eventually
from tests.support.service import free_port

RUNS = int(os.environ.get("ROTA_TEST_PLAN_RUNS", "300"))
#: Runs per second. With the default number of runs, the operation has three batches, a second apart.
RATE = max(100, RUNS // 100)
SLOW = 300 if RUNS <= 5000 else 3600
pytestmark = [pytest.mark.crash, pytest.mark.timeout(SLOW)]

TOKEN = "a-token-for-this-test-alone-0123456789"
DEAD = """
    INSERT INTO rota_runs (job, queue, exclusive, state, reason, attempt, finished_at)
    SELECT 'touch', 'chaos', false, 'dead', 'retries', 1, clock_timestamp() FROM generate_series(1, :count) RETURNING id
"""
DROPPED = "UPDATE rota_runs SET reason = 'dropped' WHERE id = ANY(:ids)"
DELETED = "DELETE FROM rota_runs WHERE id = ANY(:ids)"
#: Changes runs as if another person had retried them, and they were dead again.
CAME_BACK = "UPDATE rota_runs SET attempt = 2, finished_at = clock_timestamp() WHERE id = ANY(:ids)"
TIMES = """
    SELECT count(*) AS runs, coalesce(max(times), 0) AS most
    FROM (SELECT count(*) AS times FROM effects WHERE job = 'touch' GROUP BY run_id) AS each
"""


class Web:
    """One ``rota web`` of a fleet, with an admin's token."""

    def __init__(self, fleet):
        self.port = free_port()
        self.process = fleet.start("rota", "web", ROTA_WEB_PORT=str(self.port), ROTA_WEB_TOKEN=TOKEN)
        eventually(self.is_up, within=30)

    def is_up(self):
        with suppress(OSError):
            return self.ask("/health/live") is not None
        return False

    def ask(self, path, sent=None):
        """Return the answer to a GET, or to a POST with the body ``sent``."""
        body = None if sent is None else json.dumps(sent).encode()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)


def do(fleet, statement, **parameters):
    with fleet.engine.begin() as connection:
        return connection.execute(text(statement), parameters)


def changed(fleet):
    (row,) = fleet.rows("SELECT changed FROM rota_operations")
    return row.changed


def left_out(web, of):
    """Read every page of the items that were left out. Return the reason for each item."""
    found, after = {}, 0
    while after is not None:
        page = web.ask(f"{of}/left-out?after={after}")
        found |= {int(each["item"]): each["reason"] for each in page["items"]}
        after = page["next"]
    return found


def test_each_run_is_retried_once_and_what_changed_is_named(make_fleet):
    fleet = make_fleet(jobs="touch")
    worker = fleet.worker(threads=4)
    web = Web(fleet)
    ids = list(do(fleet, DEAD, count=RUNS).scalars())
    began = time.monotonic()
    plan = web.ask("/api/v1/plans", {"action": "retry", "select": {"job": "touch"}, "rate": RATE})
    planned_in = time.monotonic() - began
    assert plan["total"] == RUNS
    dropped, deleted, back = ids[::50], ids[1::50], ids[2::50]
    for statement, some in ((DROPPED, dropped), (DELETED, deleted), (CAME_BACK, back)):
        do(fleet, statement, ids=some)

    began = time.monotonic()
    web.ask(f"/api/v1/plans/{plan['id']}/execute", {"digest": plan["digest"]})
    fleet.kill(web.process)
    eventually(lambda: changed(fleet) > 0, within=SLOW / 3)
    fleet.kill(worker)
    fleet.worker(threads=4)
    web = Web(fleet)
    of = f"/api/v1/operations/{plan['id']}"
    done = eventually(lambda: (found := web.ask(of))["state"] == "done" and found, within=SLOW / 3)
    took = time.monotonic() - began

    fallen = dict.fromkeys(dropped, "has changed, and is dead (dropped)")
    fallen |= dict.fromkeys(deleted, "is no longer in the ledger")
    fallen |= dict.fromkeys(back, "has changed, and is dead (retries)")
    assert left_out(web, of) == fallen
    assert (done["changed"], done["remaining"]) == (RUNS - len(fallen), 0)
    assert sum(done["left_out"].values()) == len(fallen)
    (entry,) = fleet.rows("SELECT details FROM rota_audit WHERE action = 'retry'")
    assert (entry.details["runs"], entry.details["left_out"]) == (RUNS - len(fallen), len(fallen))
    retried = "SELECT count(*) AS runs FROM rota_runs WHERE job = 'touch' AND retried_at IS NOT NULL"
    assert fleet.rows(retried)[0].runs == RUNS - len(fallen)
    eventually(lambda: fleet.rows(TIMES)[0].runs == RUNS - len(fallen), within=SLOW / 3)
    assert fleet.rows(TIMES)[0].most == 1
    print(f"{RUNS} runs: planned in {planned_in:.2f} s, carried out in {took:.1f} s at {RATE} per second")  # noqa: T201
