"""Statements about limits read only the runs that they need, however many runs are finished and however many wait."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import Limit, Run, enqueue, job
from core import database as databases
from core.dispatcher.loop import PLANS
from core.ledger import limit_use, limits, room
from core.ledger.claims import CLAIM, CLAIM_LIMITED, Verdict
from core.ledger.limits import LOCK
from core.worker.claiming import limits_of

#: Finished runs with many limits, runs that wait for another limit, the rows of these limits, and closings that have
#: ended.
FILL = [
    """INSERT INTO rota_runs (job, queue, exclusive, limits, limits_declared, state, attempt, finished_at)
       SELECT 'work', 'default', false, ARRAY['imap/' || n % 3000, 'smtp'], '{"imap/{host}",smtp}', 'succeeded', 1,
              now()
       FROM generate_series(1, 50000) AS n""",
    """INSERT INTO rota_runs (job, queue, exclusive, limits, limits_declared, waits_for, sent_at, reason)
       SELECT 'work', 'default', false, '{imap/full,smtp}', '{"imap/{host}",smtp}', 'imap/full', 'infinity', 'limit'
       FROM generate_series(1, 10000) AS n""",
    """INSERT INTO rota_limits (name, declared, holders, tokens, used_at)
       SELECT 'imap/' || n, 'imap/{host}', ARRAY[n], NULL, now() FROM generate_series(1, 3000) AS n""",
    """INSERT INTO rota_closings (name, until)
       SELECT 'smtp', now() - n * interval '1 minute' FROM generate_series(1, 3000) AS n""",
    """INSERT INTO rota_closings (name, until)
       SELECT 'imap/' || n, now() - interval '1 day' FROM generate_series(1, 3000) AS n""",
]
TABLES = {"rota_runs", "rota_limits", "rota_closings"}
WOKEN = {"names": ["smtp", "imap/full"], "most": [500, 500], "run_ids": [], "jobs": ["work"], "carried": False}


@job("work", limits=[Limit("imap/{host}", at_once=1), Limit("smtp", most=5, per=timedelta(minutes=1))])
def work(run: Run, host: str = "full") -> None:
    """Do nothing."""


@pytest.fixture
def waiting(database, ledger, use_jobs, start_process):
    """Return a process and a run. The run waits for a limit among ten thousand runs, while another run is at work."""
    use_jobs(work)
    process = start_process(jobs=[work])
    for statement in FILL:
        ledger.do(statement)
    ledger.do("ANALYZE rota_runs, rota_limits, rota_closings")
    with Session(database) as session, session.begin():
        asked = [enqueue(session, "work") for _ in range(2)]
    found = [process.claim(database, each, "work", limits=lambda args: limits_of(work, args))[0] for each in asked]
    assert found == [Verdict.RUNNING, Verdict.LIMITED]
    return process.id, asked[1]


def rows_read(connection, statement: str, parameters: dict[str, Any] | None = None) -> int:
    """Return how many rows of runs, limits and closings a statement reads, also those that its conditions exclude."""
    plan = connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"), parameters or {}).scalar_one()[0]
    return sum(map(read_by, nodes(plan["Plan"])))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return a node of a plan, and all nodes below it."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def read_by(node: dict[str, Any]) -> int:
    if node.get("Relation Name") not in TABLES or "Scan" not in node["Node Type"]:
        return 0
    left_out = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int((node["Actual Rows"] + left_out) * node["Actual Loops"])


#: The rows that each statement may read: some rows for each of its limits.
LOOKS = {
    "names": (room.NAMES.text, {"after": "", "most": 1000}, 3),
    "wake": (room.WAKE.text, WOKEN, 20),
    "next": (room.NEXT.text, {"names": ["smtp", "imap/full"]}, 20),
    "unused": (limits.DELETE_UNUSED.text, {"batch": 1000}, 3100),
}


@pytest.mark.parametrize(("statement", "parameters", "most"), LOOKS.values(), ids=LOOKS)
def test_a_look_at_limits_reads_few_rows(database, waiting, statement, parameters, most):
    with databases.dedicated(database) as connection:
        connection.exec_driver_sql(PLANS)

        assert 0 < rows_read(connection, statement, parameters) <= most


def test_a_claim_reads_few_rows(database, waiting):
    process_id, run_id = waiting
    values = (run_id, "work", process_id, "test:1", 100, "{}", "", True)
    with databases.autocommit(database) as connection:
        CLAIM_LIMITED.rows_after(LOCK, connection, (run_id,), *values)  # prepares both statements

        assert 0 < rows_read(connection, f"EXECUTE {LOCK.name} ({run_id})") <= 2
        claim = f"EXECUTE {CLAIM_LIMITED.name} ({run_id}, 'work', {process_id}, 'test:1', 100, '{{}}', '', true)"
        assert 0 < rows_read(connection, claim) <= 20


def test_a_claim_of_a_run_that_no_form_refused_reads_no_release(database, ledger, use_jobs, start_process):
    """A release has the arguments of every job, so reading it can cost more than the rest of the claim."""
    use_jobs(work)
    process = start_process(jobs=[work])
    run_id = ledger.do("INSERT INTO rota_runs (job, queue, exclusive) VALUES ('plain', 'default', false) RETURNING id")
    with databases.autocommit(database) as connection:
        CLAIM.rows(connection, 0, "plain", process.id, "test:1", 100, "{}", "", True)  # prepares the statement
        claim = f"EXECUTE {CLAIM.name} ({run_id}, 'plain', {process.id}, 'test:1', 100, '{{}}', 'form', true)"
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {claim}").scalar_one()[0]["Plan"]

    of_others = [node for node in nodes(plan) if node.get("Alias") in ("other", "release")]
    assert [node["Actual Loops"] for node in of_others] == [0, 0], "nobody asks whom the run fits"


def test_why_reads_few_rows(database, waiting):
    _, run_id = waiting
    with databases.dedicated(database) as connection:
        read = rows_read(connection, limit_use.OF_RUN.text, {"run_id": run_id})

    assert 10_000 < read <= 10_020, "it counts those that wait"
