"""The priority of a run, as its job or its request says."""

import pytest
from sqlalchemy.orm import Session

from core import enqueue, enqueue_many, job

plain = job("plain")(lambda run: None)
urgent = job("urgent", priority=7)(lambda run: run.enqueue("plain", priority=2))


@pytest.fixture(autouse=True)
def jobs(use_jobs):
    return use_jobs(plain, urgent)


@pytest.mark.parametrize(
    ("name", "options", "priority"),
    [("plain", {}, 0), ("plain", {"priority": 9}, 9), ("urgent", {}, 7), ("urgent", {"priority": 0}, 0)],
)
def test_a_request_has_its_own_priority_or_that_of_its_job(database, ledger, name, options, priority):
    with Session(database) as session, session.begin():
        asked = [enqueue(session, name, **options), *enqueue_many(session, name, [{}, {}], **options)]

    assert [ledger.run(run_id).priority for run_id in asked] == [priority] * 3


def test_a_job_requests_a_run_with_a_priority(run_job, ledger):
    assert ledger.run(run_job(urgent).result).priority == 2
