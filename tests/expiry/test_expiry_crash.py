"""kill -9 in the middle of a sweep: another worker continues, and nothing is lost or done twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from expiry_world import check_points, grant_in_bulk
from sqlalchemy import text

from tests.support.eventually import eventually
from tests.support.fleet import Fleet, fleet

pytestmark = pytest.mark.crash

LOTS, USERS = 60_000, 500
JOB = "check-expired-points"


@pytest.fixture
def workers(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Fleet]:
    with fleet(tmp_path, postgres_url, redis_url, jobs="none") as started:
        yield started
        with started.engine.begin() as connection:
            connection.execute(text("DROP TABLE effects, shared_row"))


def test_a_sweep_killed_in_the_middle_is_finished_by_another_worker(workers: Fleet):
    with workers.engine.begin() as connection:
        grant_in_bulk(connection, LOTS, USERS)
    worker = workers.worker("--queues", "expiry")
    (run_id,) = workers.request(JOB, queue="expiry")

    eventually(lambda: progress(workers, run_id) > 0, within=30, every=0.005)
    workers.kill(worker)
    after_the_kill = expired(workers)
    sums_after_the_kill = wrong_sums(workers)
    workers.worker("--queues", "expiry")
    eventually(lambda: run(workers, run_id).state == "succeeded", within=60)

    assert 0 < after_the_kill < LOTS, "it was not killed in the middle"
    assert sums_after_the_kill == []
    assert expired(workers) == LOTS
    assert wrong_sums(workers) == []
    assert workers.rows("SELECT sum(points) AS points FROM expiry_point_balances")[0].points == 0
    finished = run(workers, run_id)
    assert (finished.attempt, finished.result["expired"]) == (2, LOTS - after_the_kill)


def run(workers: Fleet, run_id: int):
    return next(row for row in workers.runs(JOB) if row.id == run_id)


def progress(workers: Fleet, run_id: int) -> int:
    return (run(workers, run_id).progress or {}).get("expired", 0)


def expired(workers: Fleet) -> int:
    return workers.rows("SELECT count(*) AS count FROM expiry_point_entries WHERE kind = 'expired'")[0].count


def wrong_sums(workers: Fleet) -> list[tuple[str, ...]]:
    with workers.engine.connect() as connection:
        return check_points(connection)
