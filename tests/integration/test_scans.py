"""Statements that search for the few runs that are due, late, lost or old use an index, however many other runs there
are.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from core import database as databases
from core.dispatcher.loop import PLANS
from core.ledger import agenda, deadlines, direct, due, retention, shares, slots, waiting

#: Thousands of runs that are due tomorrow, that have been sent, that are slots in time, and that have just ended.
FILL = [
    "INSERT INTO rota_runs (job, queue, due_at) SELECT 'work', 'default', now() + interval '1 day' FROM {many}",
    "INSERT INTO rota_runs (job, queue, sent_at) SELECT 'work', 'default', now() FROM {many}",
    "INSERT INTO rota_runs (job, queue, key, slot, sent_at) SELECT 'work', 'default', n, now(), now() FROM {many}",
    "INSERT INTO rota_runs (job, queue, sent_at, priority) SELECT 'work', 'default', now(), n % 10 FROM {many}",
    "INSERT INTO rota_runs (job, queue, state, finished_at) SELECT 'work', 'default', 'succeeded', now() FROM {many}",
    "INSERT INTO rota_audit (actor, via, action, target) SELECT 'ann', 'cli', 'retry', n FROM {many}",
    "INSERT INTO rota_pauses (scope, paused_by) SELECT 'job:' || n, 'ann' FROM {many}",
]
AGE = {"age": "5 seconds"}
LANE = {"queue": "default", "jobs": ["work"]}
TURN = {"afters": [""]}
LOST = {"waiting": [], "batch": 500}
#: The statements that search for queues and jobs with work, and the part of the index of waiting runs that each may
#: read.
LANES = {
    "any due": (due.ANY_DUE.text, {}),
    "due": (due.DUE_LANES.text, {"jobs": ["work"]}),
    "due urgent": (shares.DUE_URGENT.text, {"jobs": ["work"]}),
    "overdue": (due.OVERDUE_LANES.text, AGE),
    "overdue urgent": (due.OVERDUE_URGENT_LANES.text, AGE),
    "agenda": ("EXECUTE rota_agenda ('30 seconds', '5 seconds')", {}),
}
OF_LANES = {"rota_runs_unsent", "rota_runs_sent", "rota_runs_urgent", "rota_runs_urgent_sent"}
OLD = {"kept": timedelta(days=30), "batch": 5000}
DISPATCHING = {
    "agenda": (
        "EXECUTE rota_agenda ('30 seconds', '5 seconds')",
        {},
        {"rota_runs_late"},
    ),
    "take": (shares.TAKE.text, {**LANE, **TURN, "share": 500, "searched": 1000}, {"rota_runs_unsent"}),
    "take urgent": (shares.TAKE_URGENT.text, {**LANE, "batch": 500, "priority": 7}, {"rota_runs_urgent"}),
    "lost": (due.FORGET_ORDINARY_SENT.text, {**LANE, **AGE, **LOST, "priority": 0}, {"rota_runs_sent"}),
    "lost urgent": (due.FORGET_URGENT_SENT.text, {**LANE, **AGE, **LOST, "priority": 7}, {"rota_runs_urgent_sent"}),
    "expired": (deadlines.EXPIRE.text, {"batch": 1000}, {"rota_runs_expiring"}),
    "late": (slots.LATE_JOBS.text, {"tolerance": "30 seconds"}, {"rota_runs_late"}),
}
BACKLOGS = [
    (
        "INSERT INTO rota_runs (job, queue, key, exclusive) SELECT 'work', 'default', mod(n, 500), false"
        " FROM generate_series(1, 20000) AS n"
    ),
    (
        "INSERT INTO rota_runs (job, queue, exclusive, priority) SELECT 'work', 'default', false, 1 + mod(n, 9)"
        " FROM generate_series(1, 5000) AS n"
    ),
]
DIRECT = {
    "jobs": ["work"],
    "queues": ["default"],
    "most": 8,
    "began": "2020-01-01",
    "age": "5 seconds",
    "by_age": False,
    "searched": direct.SEARCHED,
    "turn_queues": ["default"],
    "turn_jobs": ["work"],
    "afters": ["7"],
    "last_queue": "",
    "last_job": "",
}
#: The statements that take runs of a backlog.
TAKING = {
    "take": (shares.TAKE.text, {**LANE, "afters": ["7"], "share": 100, "searched": 1000}),
    "take urgent": (shares.TAKE_URGENT.text, {**LANE, "batch": 100, "priority": 7}),
    "take directly": (direct.TAKE.text, DIRECT),
}
PRUNING = {
    "runs": (retention.DELETE.text, "rota_runs_finished"),
    "pauses": (retention.DELETE_PAUSES.text, "rota_pauses_until"),
    "audit": (retention.DELETE_AUDIT.text, "rota_audit_at"),
}
#: The statements that search for a waiting run of a job and key, and the index that each reads.
WAITING = {
    "of a key": (waiting.OF_KEY, "rota_runs_turn", 1),
    "sent": (waiting.SENT, "rota_runs_sent", 100),
    "unsent": (waiting.UNSENT, "rota_runs_unsent", 100),
}


@pytest.fixture
def connection(database, ledger):
    """Yield a connection to a ledger with many runs."""
    for statement in FILL:
        ledger.do(statement.format(many="generate_series(1, 3000) AS n"))
    ledger.do("ANALYZE rota_runs, rota_audit, rota_pauses")
    with databases.dedicated(database) as connection:
        yield connection


@pytest.mark.parametrize(("statement", "parameters", "indexes"), DISPATCHING.values(), ids=DISPATCHING)
def test_the_dispatcher_reads_no_further_than_what_is_due(connection, statement, parameters, indexes):
    connection.exec_driver_sql(PLANS)
    agenda.ask(connection, 30, 5)  # prepares the statement

    found = scans(connection, statement, parameters)

    assert found.keys() >= indexes
    for index in indexes:
        assert_bounded(found[index])


@pytest.mark.parametrize(("statement", "parameters"), LANES.values(), ids=LANES)
def test_a_lane_costs_one_entry_of_an_index_however_many_runs_wait_in_it(connection, statement, parameters):
    connection.exec_driver_sql(PLANS)
    agenda.ask(connection, 30, 5)  # prepares the statement

    plan = connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"), parameters).scalar_one()[0]

    scans = [node for node in nodes(plan["Plan"]) if node.get("Index Name") in OF_LANES]
    assert scans
    assert all(node["Actual Rows"] <= 1 and not node.get("Rows Removed by Filter") for node in scans)


@pytest.mark.parametrize(("statement", "parameters"), TAKING.values(), ids=TAKING)
@pytest.mark.parametrize("analyzed_after", [None, 0, 1], ids=["never", "half of it", "all of it"])
def test_what_is_taken_of_a_backlog_costs_little_of_it(database, ledger, statement, parameters, analyzed_after):
    """This also holds without statistics, or with old ones, as shortly after a backlog was inserted."""
    ledger.do("ALTER TABLE rota_runs SET (autovacuum_enabled = off)")  # autovacuum counts only committed rows
    for number, backlog in enumerate(BACKLOGS):
        ledger.do(backlog)
        if number == analyzed_after:
            ledger.do("ANALYZE rota_runs")
    with databases.dedicated(database) as connection:
        connection.exec_driver_sql(PLANS)
        plan = connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"), parameters).scalar_one()[0]
    ledger.do("ALTER TABLE rota_runs RESET (autovacuum_enabled)")

    assert sum(map(rows_read, nodes(plan["Plan"]))) < 4000


def rows_read(node: dict[str, Any]) -> int:
    """Return how many runs a node of a plan has read."""
    if node.get("Relation Name") != "rota_runs" and node.get("Node Type") != "Bitmap Index Scan":
        return 0
    left_out = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int((node["Actual Rows"] + left_out) * node["Actual Loops"])


@pytest.mark.parametrize(("statement", "index", "most"), WAITING.values(), ids=WAITING)
def test_a_request_reads_few_of_the_runs_that_wait(connection, ledger, statement, index, most):
    """This also holds if other runs of the job, with other keys, were requested after the only run that fits."""
    ledger.do("UPDATE rota_runs SET due_at = now() - interval '1 hour', sent_at = NULL WHERE due_at > now()")
    values = {"job": "work", "key": "", "queue": "default", "delay": timedelta(0)}
    asked = statement.replace("ledger.", "")

    plan = connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {asked}"), values).scalar_one()[0]["Plan"]

    read = [node for node in nodes(plan) if node.get("Index Name") == index]
    assert read
    assert all(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= most for node in read)


@pytest.mark.parametrize(("statement", "index"), PRUNING.values(), ids=PRUNING)
def test_pruning_reads_no_further_than_what_is_old(connection, statement, index):
    assert_bounded(scans(connection, statement, OLD)[index])


def scans(connection, statement: str, parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the nodes of a statement's plan that read an index, by the name of the index."""
    plan = connection.execute(text(f"EXPLAIN (FORMAT JSON) {statement}"), parameters).scalar_one()[0]["Plan"]
    return {node["Index Name"]: node for node in nodes(plan) if "Index Name" in node}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return a node of a plan, and all nodes below it."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def assert_bounded(scan: dict[str, Any]) -> None:
    """Check that the due time is a condition of the index scan, and not a filter on the rows that were read."""
    assert "timestamp()" in scan["Index Cond"]
    assert "timestamp()" not in scan.get("Filter", "")


def test_no_plan_is_compiled_because_a_forbidden_node_makes_it_seem_expensive(database):
    with databases.autocommit(database) as connection, databases.dedicated(database) as of_the_dispatcher:
        of_the_dispatcher.exec_driver_sql(PLANS)

        for session in (connection, of_the_dispatcher):
            assert session.exec_driver_sql("SHOW enable_seqscan").scalar_one() == "off"
            assert session.exec_driver_sql("SHOW jit").scalar_one() == "off"
