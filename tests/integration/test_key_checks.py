"""The claim of a slot checks the slot's run-time schedule, and runs that die double the interval of their key."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from core import Keyed, Limit, cron, every, job, pause_schedule, schedule, schedules, unschedule
from tests.support.emitted import emitted

MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
SLOT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def heard():
    return []


@pytest.fixture
def poll(heard):
    @job("poll", keyed=Keyed(default=every(seconds=60), backoff_after=2, backoff_longest=5 * MINUTE), max_retries=0)
    def poll(run):
        heard.append(run.key)
        if "fail" in heard:
            raise ConnectionError("the server is away")

    return poll


@pytest.fixture
def session(database, use_jobs, poll):
    use_jobs(poll)
    with Session(database) as session:
        schedule(session, "poll", key="42")
        session.commit()
        yield session


@pytest.fixture
def slot(ledger):
    """Insert a slot as the dispatcher does. Return the run's id."""
    number = 0

    def slot(key="42", **columns):
        nonlocal number
        number += 1
        schedule_id = ledger.value("SELECT id FROM rota_key_schedules WHERE key = :key", key=key)
        return ledger.request("poll", key=key, slot=SLOT + number * MINUTE, schedule_id=schedule_id, **columns)

    return slot


def test_a_slot_whose_schedule_is_there_runs(session, slot, executor, poll, heard, ledger):
    run_id = slot()

    assert executor.execute(poll, run_id) == "succeeded"
    assert heard == ["42"]


def test_a_slot_that_the_removal_did_not_see_is_skipped_when_it_is_claimed(
    session, slot, executor, poll, heard, ledger
):
    run_id = slot()
    ledger.do("DELETE FROM rota_key_schedules")  # as if the slot had been inserted at the same moment

    assert executor.execute(poll, run_id) == "skipped"

    run = ledger.run(run_id)
    assert (run.state, run.reason, run.attempt, run.started_at) == ("skipped", "unscheduled", 0, None)
    assert heard == []


def test_a_slot_of_a_schedule_that_was_removed_and_made_again_is_skipped(session, slot, executor, poll, ledger):
    run_id = slot(state="retrying")  # so that the removal does not end the run
    unschedule(session, "poll", key="42")
    schedule(session, "poll", key="42")
    session.commit()

    executor.execute(poll, run_id)

    assert (ledger.run(run_id).state, ledger.run(run_id).reason) == ("skipped", "unscheduled")


def test_a_slot_that_was_started_before_goes_on(session, slot, executor, poll, ledger, heard):
    run_id = slot(state="retrying", attempt=1)
    unschedule(session, "poll", key="42")
    session.commit()

    assert executor.execute(poll, run_id) == "succeeded"


def test_a_slot_of_a_paused_key_is_skipped_and_a_request_runs(session, slot, executor, poll, ledger, heard):
    run_id, request = slot(), ledger.request("poll", key="42")
    pause_schedule(session, "poll", key="42")
    session.commit()

    assert executor.execute(poll, run_id) == "skipped"
    assert executor.execute(poll, request) == "succeeded"
    assert (ledger.run(run_id).reason, heard) == ("paused", ["42"])


def test_a_skipped_slot_lets_the_next_run_of_its_key_start(session, slot, executor, poll, ledger):
    run_id = slot()
    ledger.do("DELETE FROM rota_key_schedules")
    executor.execute(poll, run_id)

    assert executor.execute(poll, ledger.request("poll", key="42")) == "succeeded"


def test_runs_that_die_in_a_row_double_the_interval_and_a_success_ends_that(
    session, slot, executor, poll, heard, caplog
):
    heard.append("fail")
    stretches = []
    for _ in range(5):
        executor.execute(poll, slot())
        session.rollback()
        stretches.append(schedules(session, "poll")[0].stretch)

    assert stretches == [0, 1, 2, 2, 2]  # up to 5 minutes: 1, 2 and 4 minutes
    assert [event.every_seconds for event in emitted(caplog, "schedule.backs_off")] == [120, 240, 240, 240]

    heard.remove("fail")
    executor.execute(poll, slot())
    session.rollback()
    (found,) = schedules(session, "poll")
    assert (found.stretch, found.failures) == (0, 0)


def test_a_cron_key_backs_off_as_well(session, slot, executor, poll, heard, caplog):
    heard.append("fail")
    schedule(session, "poll", key="42", cron=cron("* 9-17 * * mon-fri"))
    session.commit()
    stretches = []
    for _ in range(4):
        executor.execute(poll, slot())
        session.rollback()
        stretches.append(schedules(session, "poll")[0].stretch)

    assert stretches == [0, 1, 2, 2]
    assert [event.every_seconds for event in emitted(caplog, "schedule.backs_off")] == [120, 240, 240]


def test_a_longer_interval_keeps_the_back_off_within_its_longest(session, slot, executor, poll, heard):
    heard.append("fail")
    for _ in range(3):
        executor.execute(poll, slot())
    session.rollback()
    assert schedules(session, "poll")[0].stretch == 2

    schedule(session, "poll", key="42", every=2 * MINUTE)
    assert [(each.stretch, each.failures) for each in schedules(session, "poll")] == [(1, 3)]
    schedule(session, "poll", key="42", every=timedelta(days=1))
    assert [(each.stretch, each.failures) for each in schedules(session, "poll")] == [(0, 3)]


def test_a_success_ends_the_back_off_also_if_the_job_has_none_any_more(session, slot, executor, use_jobs, ledger):
    plain = job("poll", keyed=Keyed(default=every(seconds=60)))(lambda run: None)
    use_jobs(plain)
    ledger.do("UPDATE rota_key_schedules SET stretch = 3, failures = 4")

    assert executor.execute(plain, slot()) == "succeeded"

    assert [(each.stretch, each.failures) for each in schedules(session, "poll")] == [(0, 0)]


def test_a_request_that_succeeds_ends_the_back_off_too(session, slot, executor, poll, heard, ledger):
    heard.append("fail")
    for _ in range(3):
        executor.execute(poll, slot())
    heard.remove("fail")

    executor.execute(poll, ledger.request("poll", key="42"))

    assert schedules(session, "poll")[0].failures == 0


def test_a_death_that_cannot_be_counted_is_logged(session, slot, executor, use_jobs, database, ledger, caplog):
    def work(run):
        ledger.do("ALTER TABLE rota_key_schedules RENAME TO rota_key_schedules_away")
        raise ConnectionError

    failing = job("poll", keyed=Keyed(default=every(seconds=60), backoff_after=1), max_retries=0)(work)
    use_jobs(failing)

    assert executor.execute(failing, slot()) == "dead"

    ledger.do("ALTER TABLE rota_key_schedules_away RENAME TO rota_key_schedules")
    assert len(emitted(caplog, "schedule.backoff_not_recorded")) == 1
    assert schedules(session, "poll")[0].failures == 0


def test_a_job_without_back_off_counts_nothing(session, slot, executor, heard, use_jobs):
    def work(run):
        raise ValueError

    plain = job("poll", keyed=Keyed(default=every(seconds=60)), max_retries=0)(work)
    use_jobs(plain)

    executor.execute(plain, slot())

    assert schedules(session, "poll")[0].failures == 0


def test_while_a_run_of_the_key_is_retried_its_slots_are_skipped(session, slot, executor, poll, ledger):
    slot(state="retrying", attempt=1, due_at=datetime.now(UTC) + MINUTE)
    run_id = slot()

    executor.execute(poll, run_id)

    assert (ledger.run(run_id).state, ledger.run(run_id).reason) == ("skipped", "retrying")


def test_a_retry_is_due_by_the_next_slot_of_its_key(session, slot, executor, ledger, use_jobs):
    def work(run):
        raise ConnectionError

    doubling = job(
        "poll", keyed=Keyed(default=every(seconds=60)), retry_delay=SECOND, backoff="exponential", max_retries=20
    )(work)
    use_jobs(doubling)
    run_id = slot(failures=12, state="retrying", attempt=12)

    assert executor.execute(doubling, run_id) == "retrying"

    run = ledger.run(run_id)
    assert run.due_at <= run.started_at + MINUTE + SECOND
    phase = ledger.value("SELECT phase FROM rota_key_schedules")
    assert int(run.due_at.timestamp()) % 60 == phase


class TestWithLimits:
    @pytest.fixture
    def reader(self, session, heard, use_jobs, start_process):
        """Return a job whose keys share a limit if they have the same host."""

        def work(run, host: str = ""):
            heard.append(run.key)
            if then:
                heard.append(then.pop()())

        then = []
        reader = job(
            "poll", keyed=Keyed(default=every(seconds=60)), limits=[Limit("imap:{host}", at_once=1)], max_retries=0
        )(work)
        use_jobs(reader)
        start_process(jobs=[reader])  # the numbers of limits are those of live releases
        return reader, then

    @pytest.fixture
    def of_host(self, session, ledger, reader):
        """Insert the slot of a key for a host. Return the run's id."""

        def of_host(key, host):
            schedule(session, "poll", key=key, args={"host": host})
            session.commit()
            (row,) = ledger.rows("SELECT * FROM rota_key_schedules WHERE key = :key", key=key)
            ledger.do(
                "INSERT INTO rota_runs (job, key, queue, slot, args, schedule_id) "
                "VALUES ('poll', :key, 'default', :slot, CAST(:args AS jsonb), :id)",
                key=key, slot=SLOT, args=f'{{"host": "{host}"}}', id=row.id,
            )  # fmt: skip
            return ledger.value("SELECT max(id) FROM rota_runs")

        return of_host

    def test_slots_of_different_keys_share_the_limit_of_their_host(self, reader, of_host, executor, heard, ledger):
        work, then = reader
        first, second, other = of_host("1", "a"), of_host("2", "a"), of_host("3", "b")
        then.append(lambda: (executor.execute(work, second), executor.execute(work, other)))

        assert executor.execute(work, first) == "succeeded"

        assert ledger.run(second).state == "queued"
        assert ledger.run(second).reason == "limit"
        assert ledger.run(other).state == "succeeded"

    def test_a_slot_that_is_skipped_leaves_its_limit_free(self, reader, of_host, executor, ledger):
        work, _ = reader
        first, second = of_host("1", "a"), of_host("2", "a")
        ledger.do("DELETE FROM rota_key_schedules WHERE key = '1'")

        assert executor.execute(work, first) == "skipped"
        assert executor.execute(work, second) == "succeeded"
