"""Finished runs are kept for the given time, and then deleted in bounded batches."""

import pytest
from sqlalchemy.orm import Session

from core import settings, upkeep
from core.ledger import retention


@pytest.fixture
def prune(database, monkeypatch):
    """Delete runs that finished more than 10 days ago. Return their number, and the checkpoints."""
    monkeypatch.setenv("ROTA_RETENTION_DAYS", "10")
    settings.current.cache_clear()

    def prune(batch=5000):
        checkpoints = []
        with Session(database) as session:

            def checkpoint(progress):
                session.commit()
                checkpoints.append(progress)

            return retention.prune(session, checkpoint=checkpoint, batch=batch), checkpoints

    return prune


def finish(ledger, days, *, count=1, state="succeeded"):
    ledger.do(
        "INSERT INTO rota_runs (job, queue, state, finished_at) SELECT 'work', 'default', :state, "
        "clock_timestamp() - make_interval(days => :days) FROM generate_series(1, :count)",
        state=state,
        days=days,
        count=count,
    )


@pytest.mark.parametrize("state", ["succeeded", "dead", "skipped", "missed", "orphaned"])
def test_old_finished_runs_are_deleted_and_young_ones_kept(prune, ledger, state):
    finish(ledger, 11, count=3, state=state)
    finish(ledger, 9, count=2, state=state)

    assert prune()[0] == 3
    assert len(ledger.runs("work")) == 2


def test_unfinished_runs_are_never_deleted_however_old(prune, ledger):
    for state in ("queued", "running", "retrying"):
        ledger.request(state=state, queued_at="2020-01-01T00:00:00Z", due_at="2020-01-01T00:00:00Z")

    assert prune() == (0, [])
    assert len(ledger.runs("work")) == 3


def test_it_goes_batch_by_batch_each_committed_by_itself(prune, ledger):
    finish(ledger, 11, count=5)

    assert prune(batch=2) == (5, [{"deleted": 2}, {"deleted": 4}, {"deleted": 5}])


def test_a_run_that_is_locked_does_not_hold_up_the_others(prune, ledger, database):
    finish(ledger, 11, count=3)
    with database.begin() as connection:
        connection.exec_driver_sql("SELECT 1 FROM rota_runs ORDER BY id LIMIT 1 FOR UPDATE")

        assert prune()[0] == 2


def test_the_job_prunes_and_says_how_many(run_job, ledger):
    finish(ledger, 400, count=3)

    row = run_job(upkeep.prune_runs)

    assert (row.state, row.result) == ("succeeded", {"deleted": 3, "audit_deleted": 0})
