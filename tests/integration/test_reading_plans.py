"""Queries for people use indexes, and read little more than they show, however long the history is.

The history has 200,000 runs of 20 jobs that succeeded, and few runs in other states. Each condition of a list is tried,
at the first page and at a page in the middle of the history.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from core import job
from core.ledger import attempts, history, ids_of_time, listing, search
from core.ledger.listing import Place
from core.ledger.models import UNHAPPY, State
from core.ledger.operations import Filter
from core.operations.connections import PLANS
from core.operations.listing import chosen_filter
from core.operations.redaction import redactor
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
    """INSERT INTO rota_runs (job, queue, key, slot, state, attempt, args, queued_at, started_at, finished_at)
       SELECT 'job-' || 5 + n % 2, 'q5', 'customer-' || n % 100, CASE WHEN n % 3 = 0 THEN t.at END, 'succeeded', 1,
              jsonb_build_object('customer', n % 100), t.at, t.at, t.at
       FROM generate_series(1, 10000) AS n, LATERAL (SELECT now() - n * interval '3 minutes' AS at) AS t""",
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
    **{f"state {state}": {"state": str(state)} for state in State},
    "state and job": {"state": "dead", "job": "job-2"},
    "succeeded of a job": {"state": "succeeded", "job": "job-9"},
    "since": {"since": "1h"},
    "until": {"until": "5d"},
    "between": {"since": "6d", "until": "5d"},
    "job since": {"job": "job-7", "since": "12h"},
    "dead since": {"state": "dead", "since": "2h"},
    "rare state since": {"state": "missed", "since": "3d"},
    "state and job since": {"state": "dead", "job": "job-1", "since": "2h"},
    "key": {"key": "customer-7"},
    "key of a job": {"key": "customer-7", "job": "job-5"},
    "key that nobody has": {"key": "customer-x"},
    "key and state": {"key": "customer-7", "state": "dead"},
    "key since": {"key": "customer-7", "since": "2d"},
}
#: Searches by conditions that no index has: each of their queries reads a part of bounded size.
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "queue": {"queue": "q7"},
    "rare queue": {"queue": "q-of-nobody"},
    "reason": {"reason": "overlap"},
    "rare reason": {"reason": "grace"},
    "reason of a job since": {"reason": "retries", "job": "job-1", "since": "2h"},
    "error": {"error": "boom"},
    "rare error": {"error": "nothing like it"},
    "error since": {"error": "nothing like it", "since": "5d"},
    "error of a job": {"error": "boom", "job": "job-1"},
    "argument": {"args": ("customer:7",)},
    "argument since": {"args": ("customer:7",), "since": "5d"},
    "argument of a job": {"args": ("customer:7",), "job": "job-5"},
    "argument and succeeded": {"args": ("customer:7",), "state": "succeeded"},
    "the empty key": {"key": "", "job": "job-7"},
}


#: Lists whose index contains just their runs in the right order: the query reads each run twice, to find it and to show
#: it.
EXACT = {"all", "job", "plugin", "succeeded of a job", "dead since", "rare state since", "state and job",
         "state and job since", *(f"state {state}" for state in UNHAPPY)}  # fmt: skip
#: The runs of a key: all of them are read.
OF_KEY = 100


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
        connection.exec_driver_sql(PLANS)
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


def chosen(connection: Any, conditions: Mapping[str, Any]) -> Filter:
    """Return the filter of a list."""
    registry = loading.current()
    return chosen_filter(connection, registry, Selection(**conditions), redactor(connection, registry))


def places(connection: Any, wanted: Filter) -> list[Place | None]:
    """Return the places where pages begin: the first one, and one in the middle of the history."""
    query = "SELECT id, finished_at FROM rota_runs WHERE id > :middle AND state = 'succeeded' ORDER BY id LIMIT 1"
    run = connection.execute(text(query), {"middle": MANY // 2}).one()
    return [None, Place(run.id, run.finished_at if wanted.is_by_time else None)]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_reads_little_beside_what_it_shows(full, name):
    wanted = chosen(full, LISTS[name])
    most = 2 * LIMIT * max(1, len(wanted.jobs or ())) + (0 if name in EXACT else SPARE)

    assert not wanted.is_search
    for place in places(full, wanted):
        query = listing.statement(wanted, LIMIT, place)
        assert query is not None
        assert rows_read(full, query) <= most


@pytest.mark.parametrize("name", SEARCHES)
def test_a_part_of_a_search_reads_little_beside_its_size(full, name):
    wanted, size = chosen(full, SEARCHES[name]), 1000

    assert wanted.is_search
    for place in places(full, wanted):
        query = search.part(wanted, size, place)
        assert query is not None
        assert rows_read(full, query) <= 2 * size * max(1, len(wanted.jobs or ())) + SPARE


def test_the_requests_of_a_time_are_found_without_reading_the_history_of_the_job(full, monkeypatch):
    """Runs that were inserted in another order than they were requested are found as long as a margin covers them."""
    monkeypatch.setattr(ids_of_time, "MARGIN", 1000)
    at = full.execute(text("SELECT queued_at FROM rota_runs WHERE id = :id"), {"id": MANY // 2}).scalar_one()
    after, before = at - timedelta(minutes=10), at + timedelta(minutes=10)
    wanted = "job = 'job-5' AND slot IS NULL AND queued_at >= :after AND queued_at < :before"
    expected = full.execute(text(f"SELECT id FROM rota_runs WHERE {wanted}"), {"after": after, "before": before})

    first, last = ids_of_time.between(full, after, before)

    assert last - first <= 4 * 1000
    found = history.requested(full, "job-5", None, after, before)
    assert {run.id for run in found} == {run_id for run_id in expected.scalars() if run_id <= MANY}
    assert history.last_requested(full, "job-5", at).id == max(run.id for run in found if run.queued_at < at)


ONE = {
    "ids of a time": (ids_of_time.SEARCH.text, {"instant": "2020-01-01", "margin": 1000}, 50),
    "run": ("SELECT * FROM rota_runs WHERE id = 77", {}, 1),
    "attempts": (attempts.OF_RUN.text, {"run_id": 77}, 3),
    "children": (listing.CHILDREN.text, {"run_id": 77, "jobs": None, "most": 50}, 50),
    "at work": (history.AT_WORK.text, {"process_ids": [1, 2]}, 40),
    "departures": (history.DEPARTURES.text, {"within": timedelta(hours=24), "most": 100}, 100),
}


@pytest.mark.parametrize(("query", "parameters", "most"), ONE.values(), ids=ONE)
def test_details_read_only_what_they_show(full, query, parameters, most):
    assert rows_read(full, query, parameters) <= most
