"""``cancel`` in code takes effect in the caller's own transaction, or raises an error with the reason."""

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from core import cancel, job
from core.errors import RotaError, SelectionError
from core.ledger import cancels


def test_a_waiting_run_ends_when_the_transaction_commits(database, ledger):
    run_id = ledger.request()
    with Session(database) as session:
        assert cancel(session, run_id, reason="wrong list", by="ann") == "queued"
        assert ledger.run(run_id).state == "queued"
        session.commit()

    row = ledger.run(run_id)
    assert (row.state, row.reason, row.error) == ("dead", "cancelled", "by ann: wrong list")


def test_a_cancel_that_is_rolled_back_changes_nothing(database, ledger, process):
    lease = process.lease(database, ledger.request())
    with Session(database) as session:
        assert cancel(session, lease.run_id) == "running"

    assert ledger.run(lease.run_id).token == lease.token


def test_a_running_run_may_be_cancelled_twice(database, ledger, process):
    lease = process.lease(database, ledger.request())
    for _ in range(2):
        with Session(database) as session, session.begin():
            assert cancel(session, lease.run_id) == "running"

    with database.connect() as connection:
        assert cancels.marks(connection, [lease.run_id])[lease.run_id].asked_by == "an application"


@pytest.mark.parametrize(("state", "reason"), [("succeeded", None), ("dead", "cancelled"), ("missed", "grace")])
def test_a_run_that_is_over_is_refused_with_its_state(database, ledger, state, reason):
    run_id = ledger.request(state=state, reason=reason, finished_at="now")
    said = f"run {run_id} is over and cannot be cancelled: it is {state}{f' .{reason}.' if reason else ''}"
    with Session(database) as session, pytest.raises(SelectionError, match=said):
        cancel(session, run_id)

    assert ledger.run(run_id).reason == reason


def test_a_run_that_does_not_exist_is_refused(database):
    with Session(database) as session, pytest.raises(SelectionError, match="run 4711 does not exist"):
        cancel(session, 4711)


def test_another_object_than_a_session_is_refused():
    with pytest.raises(RotaError, match="must be a SQLAlchemy Session"):
        cancel(object(), 1)


def test_a_run_cannot_cancel_itself(run_job, ledger):
    row = run_job(job("work", max_retries=0)(lambda run: cancel(run.session, run.id)))

    assert (row.state, row.reason) == ("dead", "retries")
    assert f"run {row.id} cannot cancel itself" in row.error


def test_a_job_cancels_another_run_if_it_succeeds_and_is_named(run_job, ledger):
    """This also works in a session with a search_path of its own."""

    def function(run):
        run.session.connection().exec_driver_sql("SET LOCAL search_path = pg_catalog")
        cancel(run.session, other, reason="no longer needed")
        if run.attempt == 1:
            raise ValueError("after the cancel")

    other = ledger.request("other")
    work = job("work", retry_delay=timedelta(0))(function)
    run_id = run_job.request(work)

    run_job.executor.execute(work, run_id)
    assert ledger.run(other).state == "queued"
    run_job.executor.execute(work, run_id)
    assert ledger.run(other).error == f"by run {run_id} of job work: no longer needed"
