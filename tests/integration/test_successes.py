"""``keep="failures"``: slots that succeeded are deleted after an hour, counted, and never inserted again."""

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from core import Keyed, every, job, schedule, upkeep
from core.jobs.grid import grid
from core.ledger import history, orphans, successes
from core.operations import why
from core.plugins import loading
from tests.support.racing import race

MINUTE, HOUR, SECOND = timedelta(minutes=1), timedelta(hours=1), timedelta(seconds=1)


@pytest.fixture
def poll():
    return job("poll", queue="mail", keyed=Keyed(default=every(seconds=60), keep="failures"))(lambda run: None)


@pytest.fixture
def session(database):
    with Session(database) as session:
        yield session


@pytest.fixture
def finished(ledger):
    """Insert ended slots, which came due and ended ``ago``."""

    def finished(ago=2 * HOUR, *, name="poll", key="42", state="succeeded", count=1, **columns):
        for number in range(count):
            values = {"job": name, "key": key, "state": state, "ago": ago + number * MINUTE, "attempt": 1, **columns}
            extra = "".join(f", {column}" for column in columns)
            given = "".join(f", :{column}" for column in columns)
            ledger.do(
                f"INSERT INTO rota_runs (job, key, queue, state, slot, due_at, finished_at{extra}"
                f"{'' if 'attempt' in columns else ', attempt'}) VALUES (:job, :key, 'mail', :state, "
                f"clock_timestamp() - :ago, now(), clock_timestamp() - :ago{given}"
                f"{'' if 'attempt' in columns else ', :attempt'})",
                **values,
            )

    return finished


@pytest.fixture
def prune(session):
    return lambda *names: successes.prune(session, names or ["poll"], checkpoint=lambda _progress: session.commit())


@pytest.fixture
def counted(ledger):
    return lambda: int(ledger.value("SELECT coalesce(sum(runs), 0) FROM rota_success_counts"))


def test_slots_that_succeeded_over_an_hour_ago_are_deleted_and_counted(prune, finished, counted, ledger):
    finished(2 * HOUR, count=3)
    finished(59 * MINUTE - 2 * SECOND, key="young")

    assert prune() == 3
    assert [run.key for run in ledger.runs("poll")] == ["young"]
    assert counted() == 3
    assert prune() == 0
    assert counted() == 3


@pytest.mark.parametrize(
    "columns",
    [
        {"state": "dead"},
        {"state": "skipped", "attempt": 0},
        {"state": "missed", "attempt": 0},
        {"attempt": 2},
        {"result": '{"fetched": 1}'},
        {"key": ""},
        {"name": "other"},
    ],
    ids=str,
)
def test_all_others_are_kept(prune, finished, counted, ledger, columns):
    finished(2 * HOUR, **columns)

    assert prune() == 0
    assert counted() == 0
    assert len(ledger.rows("SELECT 1 FROM rota_runs")) == 1


def test_requests_are_kept(prune, ledger, counted):
    ledger.request("poll", key="42", state="succeeded", attempt=1, finished_at="2020-01-01T00:00:00Z")

    assert (prune(), counted()) == (0, 0)


def test_a_deletion_that_is_rolled_back_is_not_counted(session, finished, counted, ledger):
    finished(2 * HOUR)

    def breaks(_progress):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        successes.prune(session, ["poll"], checkpoint=breaks)
    session.rollback()

    assert (counted(), len(ledger.runs("poll"))) == (0, 1)


def test_two_that_prune_at_once_count_each_run_once(database, finished, counted, ledger):
    finished(2 * HOUR, count=40)

    def prune():
        with Session(database) as session:
            return successes.prune(session, ["poll"], checkpoint=lambda _progress: session.commit())

    assert sum(race(prune, prune)) == 40
    assert (counted(), ledger.runs("poll")) == (40, [])


def test_the_job_prunes_jobs_that_keep_only_failures(run_job, finished, poll, use_jobs, counted):
    other = job("other", queue="mail", keyed=Keyed(default=every(seconds=60)))(lambda run: None)
    use_jobs(poll, other, upkeep.prune_successes)
    finished(2 * HOUR)
    finished(2 * HOUR, name="other")

    assert run_job(upkeep.prune_successes).result == {"deleted": 1}
    assert counted() == 1


@pytest.fixture
def story(lead, poll, session, ledger, prune):
    """Make a schedule of one minute that was active for five minutes, two hours ago. Its runs succeeded and were
    deleted.
    """
    leader = lead(poll)
    leader.now -= 2 * HOUR
    schedule(session, "poll", key="42")
    session.commit()
    leader.passes(SECOND)
    leader.passes(5 * MINUTE)
    ledger.do("UPDATE rota_runs SET state = 'succeeded', attempt = 1, finished_at = slot + interval '2 seconds'")
    assert prune() == 5
    return leader


def slots_of(ledger, leader):
    (row,) = ledger.rows("SELECT * FROM rota_key_schedules")
    return list(grid(row.spec, row.phase).between(row.since, leader.now))


def test_why_tells_that_a_deleted_slot_succeeded(story, ledger, database):
    with database.connect() as connection:
        for slot in slots_of(ledger, story):
            found = why.ask(connection, loading.current(), "poll", at=slot.isoformat(), key="42")
            assert "succeeded at its first attempt" in "\n".join(found.answer)


def test_why_does_not_claim_that_a_slot_succeeded_that_came_due_before_the_counts(story, ledger, database):
    ledger.do("UPDATE rota_success_counts SET first_slot = first_slot + interval '3 minutes'")

    with database.connect() as connection:
        found = why.ask(connection, loading.current(), "poll", at=slots_of(ledger, story)[0].isoformat(), key="42")

    assert "is not on record" in "\n".join(found.answer)


def test_deleted_runs_are_no_outage(story, ledger, database):
    slots = slots_of(ledger, story)

    with database.connect() as connection:
        around = history.worked_around(connection, slots[2] + 30 * SECOND)

    assert around.before == slots[2] + 2 * SECOND
    assert around.after == slots[3] + 2 * SECOND


def test_no_slot_is_inserted_again_if_the_clock_goes_back(story, ledger, session):
    reached = ledger.value("SELECT accounted_until FROM rota_schedules")

    for replaced in (False, True):
        if replaced:
            story.is_replaced()
        schedule(session, "poll", key="new")
        schedule(session, "poll", key="42", args={})
        session.commit()
        story.now -= 4 * MINUTE
        story.passes(3 * MINUTE)
        assert ledger.runs("poll") == []
        assert ledger.value("SELECT accounted_until FROM rota_schedules") >= reached


def test_no_slot_is_inserted_again_if_the_job_was_forgotten_and_the_clock_goes_back(story, ledger, database):
    with database.begin() as connection:
        orphans.forget_slots(connection, "poll")
    last = slots_of(ledger, story)[-1]
    story.is_replaced()
    story.now = last - 3 * MINUTE

    story.passes(3 * MINUTE)

    assert ledger.runs("poll") == []
