"""Queries for people use indexes, and read little more than they show, however long the history is.

The history has 200,000 runs of 20 jobs that succeeded, and few runs in other states.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from core import job
from core.ledger import attempts, history, listing
from core.ledger.models import State
from core.operations.listing import chosen_filter
from core.operations.selection import Selection
from core.plugins import loading
from core.testing import registry_of

MANY = 200_000
LIMIT = 20
#: A query may also read the runs that are waiting, running or orphaned, and runs that were requested after the last
#: success.
SPARE = 2500
FILL = [
    """INSERT INTO rota_runs (job, queue, state, attempt, queued_at, started_at, finished_at)
       SELECT 'job-' || n % 20, 'q' || n % 20, 'succeeded', 1, t.at, t.at, t.at
       FROM generate_series(1, :many) AS n, LATERAL (SELECT now() - (:many - n) * interval '10 seconds' AS at) AS t""",
    """INSERT INTO rota_runs (job, queue, state, reason, error, attempt, queued_at, finished_at)
       SELECT 'job-1', 'q1', 'dead', 'retries', 'ValueError: boom', 4, t.at, t.at
       FROM generate_series(1, 300) AS n, LATERAL (SELECT now() - n * interval '1 hour' AS at) AS t""",
    """INSERT INTO rota_runs (job, queue, key, slot, state, reason, queued_at, finished_at)
       SELECT 'job-2', 'q2', state, now() - n * interval '1 hour', state, 'overlap', now(), now()
       FROM generate_series(1, 300) AS n, unnest(ARRAY['skipped', 'missed', 'orphaned']) AS state""",
    "INSERT INTO rota_runs (job, queue, sent_at) SELECT 'job-3', 'q3', now() FROM generate_series(1, 300) AS n",
    """INSERT INTO rota_runs (job, queue, state, attempt, parent_id, due_at)
       SELECT 'job-3', 'q3', 'retrying', 1, 77, now() + interval '1 day' FROM generate_series(1, 300) AS n""",
    """INSERT INTO rota_runs (job, queue, state, attempt, process_id, started_at, exclusive)
       SELECT 'job-4', 'q4', 'running', 1, n % 5, now(), false FROM generate_series(1, 100) AS n""",
    """INSERT INTO rota_attempts (run_id, attempt, outcome)
       SELECT n, a, 'failed' FROM generate_series(1, 20000) AS n, generate_series(1, 3) AS a""",
    """INSERT INTO rota_departures (process_id, kind, name, started_at, left_at, reason)
       SELECT n, 'worker', 'h:1', now(), now() - n * interval '1 minute', 'stopped'
       FROM generate_series(1, 20000) AS n""",
]
LISTS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "job": {"job": "job-7"},
    "plugin": {"plugin": "tests"},
    "queue": {"queue": "q7"},
    "rare queue": {"queue": "q-of-nobody"},
    **{f"state {state}": {"state": str(state)} for state in State},
    "state and job": {"state": "dead", "job": "job-2"},
    "succeeded of a job": {"state": "succeeded", "job": "job-9"},
    "reason": {"reason": "overlap"},
    "rare reason": {"reason": "grace"},
    "error": {"error": "boom"},
    "rare error": {"error": "nothing like it"},
    "since": {"since": "1h"},
    "until": {"until": "5d"},
    "between": {"since": "6d", "until": "5d"},
    "job since": {"job": "job-7", "since": "12h"},
    "dead since": {"state": "dead", "since": "2h"},
}


#: Lists whose index contains just their runs in the right order: the query reads each run twice, to find it and to show
#: it.
EXACT = {"all", "job", "queue", "rare queue", "state dead", "state skipped", "state missed", "succeeded of a job"}


@pytest.fixture(scope="module")
def full(shared_database: Any) -> Iterator[Any]:
    """Yield a connection to a ledger with a long history."""
    from core import database as databases

    engine = databases.connect(shared_database.open())
    jobs = [job(f"job-{n}", queue=f"q{n}")(lambda run: None) for n in range(20)]
    jobs.append(job("nobodys", queue="q-of-nobody")(lambda run: None))
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        stack.callback(shared_database.clean)
        stack.enter_context(loading.using(registry_of(*jobs)))
        connection = stack.enter_context(databases.dedicated(engine))
        for statement in FILL:
            connection.execute(text(statement), {"many": MANY} if ":many" in statement else {})
        connection.exec_driver_sql("VACUUM ANALYZE rota_runs, rota_attempts, rota_departures")
        yield connection


def rows_read(connection: Any, query: Any, parameters: Mapping[str, Any] | None = None) -> int:
    """Return how many rows a query reads, including rows that it excludes. No table may be read as a whole."""
    explained = "EXPLAIN (ANALYZE, FORMAT JSON) "
    if isinstance(query, str):
        ((plan,),) = connection.execute(text(explained + query), parameters or {}).all()
    else:
        words = query.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
        ((plan,),) = connection.exec_driver_sql(explained + str(words).replace("%", "%%")).all()
    return sum(map(read_by, nodes(plan[0]["Plan"])))


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Return all nodes of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def read_by(node: Mapping[str, Any]) -> int:
    """Return how many rows a node reads from a table."""
    if node.get("Relation Name") == "rota_runs":
        assert node["Node Type"] != "Seq Scan", node
    if "Relation Name" not in node:
        return 0
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int((node["Actual Rows"] + removed) * node["Actual Loops"])


@pytest.mark.parametrize("name", LISTS)
def test_a_list_reads_little_beside_what_it_shows(full, name):
    wanted = chosen_filter(full, loading.current(), Selection(**LISTS[name]))
    query = listing.statement(wanted, LIMIT)

    assert query is not None
    assert rows_read(full, query) <= 2 * LIMIT + (0 if name in EXACT else SPARE)


ONE = {
    "run": ("SELECT * FROM rota_runs WHERE id = 77", {}, 1),
    "attempts": (attempts.OF_RUN.text, {"run_id": 77}, 3),
    "children": (listing.CHILDREN.text, {"run_id": 77, "most": 50}, 50),
    "at work": (history.AT_WORK.text, {"process_ids": [1, 2]}, 40),
    "departures": (history.DEPARTURES.text, {"within": timedelta(hours=24), "most": 100}, 100),
}


@pytest.mark.parametrize(("query", "parameters", "most"), ONE.values(), ids=ONE)
def test_details_read_only_what_they_show(full, query, parameters, most):
    assert rows_read(full, query, parameters) <= most
