"""The number of queries of an answer does not depend on the number of runs that it shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, event

from core import every, job
from core.ledger import run_counts
from tests.support.web import bearer

AT = datetime(2026, 1, 15, tzinfo=UTC)
API = "/api/v1"
#: The most queries of each answer, with the check of the token and the switch to reading only.
MOST = {
    "/runs?state=dead": 6,
    "/runs?job=close-day&key=7": 6,
    "/runs?key=7": 8,
    "/runs?error=boom": 8,
    "/runs?arg=region:uk": 8,
    "/runs.csv?state=dead": 8,
    "/runs/{run}": 7,
    "/runs/{run}/why": 7,
    "/failures?hours=8000": 7,
    "/jobs": 5,
    "/jobs/close-day": 5,
    "/jobs/close-day/statistics?since=2026-01-01": 6,
    "/schedules": 6,
    "/queues": 6,
    "/workers": 7,
    "/pauses": 4,
    "/orphans": 6,
    "/operations": 4,
    "/audit": 5,
}


@job("close-day", queue="billing", schedule=every(hours=1))
def close_day(run, region: str = "uk"):
    """Close the day."""


@job("poll", queue="mail")
def poll(run, customer: int = 0):
    """Poll."""


@pytest.fixture(autouse=True)
def jobs(use_jobs):
    return use_jobs(close_day, poll)


@pytest.fixture
def more(ledger):
    """Return a function that inserts runs in several states, with attempts, and other rows that are listed."""

    def more(count):
        for state in ("dead", "orphaned", "running", "queued"):
            ledger.do(
                """INSERT INTO rota_runs
                       (job, queue, key, state, reason, error, args, exclusive, queued_at, finished_at)
                   SELECT CASE n % 2 WHEN 0 THEN 'close-day' ELSE 'poll' END, 'billing', n % 10, :state, 'retries',
                          'boom ' || chr(65 + n), '{"region": "uk"}', false, :at,
                          CASE WHEN :state IN ('dead', 'orphaned') THEN CAST(:at AS timestamptz) END
                   FROM generate_series(1, :count) AS n""",
                state=state,
                at=AT,
                count=count,
            )
        for row in ("rota_pauses (scope, paused_by) SELECT 'job:' || n, 'ann'",
                    "rota_audit (actor, via, action, target) SELECT 'ann', 'cli', 'run', n"):  # fmt: skip
            ledger.do(f"INSERT INTO {row} FROM generate_series(1, 20) AS n")

    return more


@contextmanager
def counting() -> Iterator[list[str]]:
    """Yield the statements of all engines in the block."""
    seen: list[str] = []

    def note(_connection, _cursor, statement, *_):
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_the_number_of_queries_does_not_grow_with_the_ledger(client, database, ledger, more):
    operator = bearer(database, "admin")
    counts: dict[str, list[int]] = {path: [] for path in MOST}

    for size in (10, 40):
        more(size)
        with database.begin() as connection:
            run_counts.recount(connection, AT, AT.replace(hour=1))
        run = ledger.value("SELECT max(id) FROM rota_runs WHERE state = 'dead'")
        for path in MOST:
            client.get(API + path.format(run=run), headers=operator)  # connections are opened
            with counting() as seen:
                answer = client.get(API + path.format(run=run), headers=operator)
            assert answer.status_code == 200, answer.text
            counts[path].append(len(seen))

    assert {path: (few, many) for path, (few, many) in counts.items() if many != few or many > MOST[path]} == {}
