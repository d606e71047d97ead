"""A batch is no larger than its limit, whichever plan PostgreSQL chooses.

PostgreSQL may plan an update whose rows come from ``IN (SELECT … LIMIT … FOR UPDATE SKIP LOCKED)`` in such a way that
the inner query is executed again for every row, and locks other rows each time.
"""

from datetime import timedelta

import pytest

from core import database as databases
from core import job
from core.ledger import orphans, retention, shares

HOSTILE = "; ".join(
    f"SET enable_{method} = off"
    for method in ("hashjoin", "mergejoin", "hashagg", "sort", "material", "memoize", "incremental_sort")
)


@job("batched", overlap="allow")
def batched(run):
    pass


@pytest.fixture
def connection(database):
    """Yield a connection on which PostgreSQL's planner has few plans to choose from."""
    with databases.dedicated(database) as connection:
        connection.exec_driver_sql(HOSTILE)
        yield connection


def taken(connection) -> int:
    return len(shares.take(connection, "default", ["batched"], shares.Turns(), batch=2))


def ended(connection) -> int:
    return len(orphans.end(connection, "batched", "uninstalled", batch=2))


def adopted(connection) -> int:
    return len(orphans.adopt(connection, batched, batch=2))


def deleted(connection) -> int:
    return connection.execute(retention.DELETE, {"kept": timedelta(days=30), "batch": 2}).rowcount


@pytest.mark.parametrize(
    ("step", "row"),
    [
        (taken, {}),
        (ended, {}),
        (adopted, {"state": "orphaned", "former_state": "queued", "finished_at": "now"}),
        (deleted, {"state": "succeeded", "finished_at": "2020-01-01"}),
    ],
    ids=["taken", "ended", "adopted", "deleted"],
)
def test_five_rows_in_batches_of_two(connection, ledger, step, row):
    for _ in range(5):
        ledger.request("batched", **row)

    assert [step(connection) for _ in range(4)] == [2, 2, 1, 0]
