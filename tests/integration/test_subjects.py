"""Subjects: the row that a run is about is looked up before the first attempt."""

from contextlib import closing
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from core import Subject, enqueue, job
from core import database as databases
from core.dispatcher import sending
from core.operations import fitness, why
from core.plugins import loading
from core.testing import registry_of
from core.transport.redis import Queues, RedisCarrier, connect
from core.worker.fitness import Fitness
from tests.support.effects import leave
from tests.support.emitted import emitted

INVITES = Subject("invites", "invite_id")


@job("invite", subject=INVITES, max_retries=1, retry_delay=timedelta(0))
def invite(run, invite_id: int | None = None):
    leave(run.session, f"invited {invite_id} by {run.id}")


@job("fails-and-deletes", subject=INVITES, max_retries=1, retry_delay=timedelta(0))
def fails_and_deletes(run, invite_id: int):
    if run.attempt == 1:
        run.session.connection().exec_driver_sql("DELETE FROM invites")
        run.checkpoint()
        raise RuntimeError("on purpose")


@job("wait-in-line", subject=INVITES, overlap="wait")
def wait_in_line(run, invite_id: int):
    pass


@pytest.fixture(autouse=True)
def invites(use_jobs, database, ledger):
    use_jobs(invite, fails_and_deletes, wait_in_line)
    ledger.do("CREATE TABLE invites (id bigint PRIMARY KEY)")
    ledger.do("INSERT INTO invites VALUES (7)")
    yield
    ledger.do("DROP TABLE IF EXISTS invites")


def ask(database, job, row):
    with database.connect() as connection:
        return " ".join(why.ask(connection, loading.current(), job, at=row.queued_at.isoformat()).answer)


def test_a_run_whose_row_exists_is_attempted_and_a_request_records_its_subject(database, executor, ledger):
    with Session(database) as session, session.begin():
        run_id = enqueue(session, "invite", args={"invite_id": 7})
        without = enqueue(session, "invite")

    assert [executor.execute(invite, each) for each in (run_id, without)] == ["succeeded", "succeeded"]
    assert [ledger.run(each).subject for each in (run_id, without)] == ["invites:7", None]
    assert sorted(ledger.effects()) == [f"invited 7 by {run_id}", f"invited None by {without}"]


def test_a_run_whose_row_is_missing_is_orphaned_without_an_attempt(run_job, ledger, caplog, database):
    row = run_job(invite, args={"invite_id": 8})

    assert (row.state, row.reason, row.error) == ("orphaned", "no subject", "invites:8 does not exist")
    assert (row.attempt, row.started_at, row.former_state) == (0, None, "queued")
    assert row.finished_at is not None
    assert ledger.effects() == []
    assert [event.table for event in emitted(caplog, "run.no_subject")] == ["invites"]
    assert "was orphaned" in ask(database, "invite", row)
    assert "before its first attempt: invites:8 does not exist" in ask(database, "invite", row)


def test_a_run_of_another_type_than_the_key_has_no_row(run_job, ledger):
    @job("invite", subject=INVITES)
    def by_text(run, invite_id: str):
        pass

    assert run_job(by_text, args={"invite_id": "seven"}).reason == "no subject"


def test_a_look_up_that_fails_hands_the_run_back(run_job, executor, ledger, caplog, database):
    ledger.do("ALTER TABLE invites RENAME TO invites_away")
    try:
        row = run_job(invite, args={"invite_id": 7})
        asked = ledger.run(row.id)
    finally:
        ledger.do("ALTER TABLE invites_away RENAME TO invites")

    assert (row.state, row.reason, row.attempt, row.failures) == ("queued", "subject unknown", 0, 0)
    assert row.due_at == asked.due_at <= row.sent_at
    assert "invites:7 could not be looked up: NoSubject: table 'invites' does not exist" in row.error
    assert "waits until its subject can be looked up" in ask(database, "invite", row)
    assert len(emitted(caplog, "run.subject_unknown")) == 1
    assert executor.execute(invite, row.id) == "succeeded"


def test_a_table_that_goes_after_it_was_found_is_looked_for_again(run_job, executor, ledger):
    assert run_job(invite, args={"invite_id": 7}).state == "succeeded"
    ledger.do("DROP TABLE invites")
    row = run_job(invite, args={"invite_id": 7})
    assert (row.state, row.reason) == ("queued", "subject unknown")
    ledger.do("CREATE TABLE invites (number text PRIMARY KEY)")
    ledger.do("INSERT INTO invites VALUES ('7')")

    assert executor.execute(invite, row.id) == "succeeded"


def test_only_the_first_attempt_looks(run_job, executor, ledger):
    row = run_job(fails_and_deletes, args={"invite_id": 7})
    assert (row.state, row.attempt) == ("retrying", 1)

    assert executor.execute(fails_and_deletes, row.id) == "succeeded"


def test_a_run_that_is_orphaned_gives_way_to_the_next_of_its_key(run_job, executor, ledger):
    first = run_job.request(wait_in_line, key="a", args={"invite_id": 8})
    second = run_job.request(wait_in_line, key="a", args={"invite_id": 7})

    assert executor.execute(wait_in_line, first) == "orphaned"
    assert executor.execute(wait_in_line, second) == "succeeded"


def test_a_run_that_is_handed_back_stays_first_of_its_key_and_is_sent_again(
    run_job, executor, ledger, redis_url, database
):
    first, second = (run_job.request(wait_in_line, key="a", args={"invite_id": 7}) for _ in range(2))
    ledger.do("ALTER TABLE invites RENAME TO invites_away")
    assert executor.execute(wait_in_line, first) == "released"
    ledger.do("ALTER TABLE invites_away RENAME TO invites")

    assert executor.execute(wait_in_line, second) == "waiting"
    with databases.autocommit(database) as connection, closing(connect(redis_url)) as client:
        carrier = RedisCarrier(Queues(client))
        sending.find_lost(connection, carrier, 3600)
        assert ledger.run(first).sent_at is not None
        sending.find_lost(connection, carrier, 0)
    assert ledger.run(first).sent_at is None
    assert executor.execute(wait_in_line, first) == "succeeded"
    assert executor.execute(wait_in_line, second) == "succeeded"


def test_a_job_without_a_subject_asks_nothing(run_job, ledger, database):
    @job("plain")
    def plain(run, invite_id: int):
        pass

    assert run_job(plain, args={"invite_id": 8}).state == "succeeded"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DROP TABLE invites", "table 'invites' does not exist, or is not in the search_path"),
        ("ALTER TABLE invites DROP CONSTRAINT invites_pkey", "table 'invites' has no primary key of one column"),
    ],
)
def test_a_table_that_is_missing_when_a_worker_starts_is_refused(database, ledger, change, said):
    ledger.do(change)

    (problem, *_) = fitness.of_subjects(database, registry_of(invite))

    assert (problem.name, problem.outcome, problem.found) == ("subject of invite", "wrong", said)


def test_a_table_that_is_there_is_no_problem(database):
    assert fitness.of_subjects(database, registry_of(invite)) == []


def test_a_worker_refuses_to_start_without_the_table(database, ledger):
    ledger.do("DROP TABLE invites")
    refusing = Fitness(database, None, registry_of(invite))

    with pytest.raises(SystemExit, match=r"subject of invite: table 'invites' does not exist.*: run `rota db upgrade`"):
        refusing.refuse_unfit()

    refusing.stop()
    refusing.join(10)


def test_a_table_that_goes_while_a_worker_runs_does_not_end_it(database, ledger):
    working = Fitness(database, None, registry_of(invite))
    working.refuse_unfit()
    ledger.do("DROP TABLE invites")

    assert working._ask()

    working.stop()
    working.join(10)
