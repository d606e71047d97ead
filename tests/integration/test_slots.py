"""I2, I8: there is one row for each slot that came due, no matter which process inserts it.

A misfire policy decides about slots that were not started in time. Outages are simulated by moving a job's watermark,
or its slots, into the past.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from core import cron, every, job
from core import database as databases
from core.dispatcher import accounting
from core.dispatcher.accounting import Accountant
from core.ledger import slots
from core.ledger.models import State
from core.ledger.slots import SlotRow, Watermark
from core.scheduling.misfires import HEAD_START, miss_late
from core.testing import registry_of
from tests.support.racing import race

#: There may be one slot less if the test runs within half a second of a slot.
EVERY_15_MINUTES_OF_3_HOURS = {11, 12}
SLOT = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)


def scheduled(schedule, **options):
    return job("work", schedule=schedule, **options)(lambda run: None)


@pytest.fixture
def now(ledger):
    """Return the time of the database, which the accountant uses."""
    return lambda: ledger.value("SELECT clock_timestamp()")


@pytest.fixture
def account(database, carrier):
    """Let the accountant of a new leader make one pass over these jobs."""

    def account(*jobs):
        with databases.autocommit(database) as connection:
            Accountant(registry_of(*jobs), slots.watermarks(connection)).account(connection, carrier)

    return account


@pytest.fixture
def outage(database, now):
    """Move the watermark of a job into the past."""

    def outage(work, **span):
        until = now() - timedelta(**span)
        with databases.autocommit(database) as connection:
            slots.account(connection, {work.name: Watermark(str(work.schedule), until)})
        return until

    return outage


class TestInsert:
    """The row decides which process queues a slot."""

    def test_one_of_10_racing_schedulers_inserts_a_slot(self, database, ledger):
        work = scheduled(every(minutes=1))

        def fire(slot):
            with databases.autocommit(database) as connection:
                return slots.insert(connection, work, [SlotRow(slot)], carried=True)

        for number in range(50):
            slot = SLOT + timedelta(minutes=number)
            winners = [run_ids for run_ids in race(*[lambda slot=slot: fire(slot)] * 10) if run_ids]

            assert len(winners) == 1
        assert len(ledger.runs("work")) == 50

    def test_only_the_new_ones_of_several_slots_are_queued(self, database, ledger):
        work = scheduled(every(minutes=1))
        rows = [SlotRow(SLOT + timedelta(minutes=number)) for number in range(5)]

        with databases.autocommit(database) as connection:
            slots.insert(connection, work, rows[1:3], carried=True)
            run_ids = slots.insert(connection, work, rows, carried=True)

        assert len(run_ids) == 3
        assert [row.slot for row in ledger.runs("work")] == [row.slot for row in rows]

    def test_a_slot_has_the_priority_of_its_job(self, database, ledger):
        urgent = job("urgent", schedule=every(hours=1), priority=7)(lambda run: None)
        with databases.autocommit(database) as connection:
            slots.insert(connection, urgent, [SlotRow(SLOT)], carried=False)

        assert [row.priority for row in ledger.runs("urgent")] == [7]

    def test_a_missed_slot_is_over_and_sent_nowhere(self, database, ledger):
        with databases.autocommit(database) as connection:
            rows = [SlotRow(SLOT, State.MISSED, "grace")]
            assert slots.insert(connection, scheduled(every(minutes=1)), rows, carried=True) == []

        (row,) = ledger.runs("work")
        assert (row.state, row.reason, row.sent_at) == ("missed", "grace", None)
        assert row.finished_at is not None

    def test_a_slot_that_was_worked_on_is_left_alone(self, run_job, database, ledger):
        work = scheduled(every(minutes=1))
        with databases.autocommit(database) as connection:
            (run_id,) = slots.insert(connection, work, [SlotRow(SLOT)], carried=True)
            run_job.executor.execute(work, run_id)
            assert slots.insert(connection, work, [SlotRow(SLOT)], carried=True) == []

        assert ledger.states("work") == ["succeeded"]


class TestWatermarks:
    """The time from which on a job's slots are accounted for."""

    def test_a_new_jobs_slots_count_from_now_on(self, account, ledger, now):
        before = now()
        account(scheduled(every(seconds=1)))

        assert ledger.runs("work") == []
        assert before <= ledger.value("SELECT accounted_until FROM rota_schedules") <= now()

    def test_a_changed_schedule_starts_again(self, account, outage, ledger, now):
        outage(scheduled(every(minutes=1)), hours=2)
        before = now()
        account(scheduled(every(minutes=2)))

        assert ledger.runs("work") == []
        (row,) = ledger.rows("SELECT * FROM rota_schedules")
        assert row.spec == str(every(minutes=2))
        assert row.accounted_until >= before

    def test_slots_that_nobody_inserted_are_queued_and_sent_after_the_head_start(
        self, account, outage, ledger, carrier, now
    ):
        work = scheduled(every(seconds=1))
        since = outage(work, seconds=5)
        account(work)
        until = now() - HEAD_START

        rows = ledger.runs("work")
        inserted = [row.slot for row in rows]
        assert inserted == list(work.schedule.between(since, inserted[-1]))
        assert until - inserted[-1] < timedelta(seconds=1.5)
        assert {row.state for row in rows} == {"queued"}
        assert sorted(run.run_id for run in carrier.runs) == sorted(row.id for row in rows)

    def test_slots_within_the_head_start_are_left_to_the_scheduler(self, account, outage, ledger, now):
        work = scheduled(every(seconds=1))
        outage(work, seconds=5)
        account(work)

        assert now() - ledger.runs("work")[-1].slot >= HEAD_START

    def test_slots_that_the_scheduler_inserted_are_not_inserted_again(
        self, account, outage, ledger, carrier, database, now
    ):
        work = scheduled(every(seconds=1))
        since = outage(work, seconds=5)
        with databases.autocommit(database) as connection:
            rows = [SlotRow(slot) for slot in work.schedule.between(since, now())]
            slots.insert(connection, work, rows, carried=True)
        account(work)

        assert carrier.runs == []
        assert [row.slot for row in ledger.runs("work")] == [row.slot for row in rows]

    def test_while_redis_is_away_slots_are_queued_for_a_later_pass(self, account, outage, ledger, carrier):
        carrier.is_away = True
        work = scheduled(every(seconds=1))
        outage(work, seconds=5)
        account(work)

        assert {(row.state, row.sent_at) for row in ledger.runs("work")} == {("queued", None)}

    def test_a_leader_that_goes_on_accounts_for_each_slot_once(self, database, ledger, carrier, outage):
        work = scheduled(every(seconds=1))
        since = outage(work, seconds=20)
        with databases.autocommit(database) as connection:
            accountant = Accountant(registry_of(work), slots.watermarks(connection))
            for _ in range(3):
                accountant.account(connection, carrier)

        found = [row.slot for row in ledger.runs("work")]
        assert found == list(work.schedule.between(since, found[-1]))
        assert len(carrier.runs) == len(found)

    def test_a_slot_that_postgresql_refuses_is_recorded_in_a_later_pass(self, database, ledger, carrier, outage):
        work = scheduled(every(seconds=1))
        since = outage(work, seconds=5)
        with databases.autocommit(database) as connection:
            accountant = Accountant(registry_of(work), slots.watermarks(connection))
            ledger.do("ALTER TABLE rota_runs ADD CONSTRAINT disk_is_full CHECK (false) NOT VALID")
            try:
                with pytest.raises(IntegrityError, match="disk_is_full"):
                    accountant.account(connection, carrier)
            finally:
                ledger.do("ALTER TABLE rota_runs DROP CONSTRAINT disk_is_full")
            accountant.account(connection, carrier)

        found = [row.slot for row in ledger.runs("work")]
        assert found
        assert found == list(work.schedule.between(since, found[-1]))


class TestMisfires:
    """I8: after an outage there is exactly one row for each slot, under every policy."""

    def test_latest_queues_the_newest_slot_and_records_the_others(self, account, outage, ledger):
        work = scheduled(every(minutes=15))
        outage(work, hours=3)
        account(work)

        rows = ledger.runs("work")
        assert [(row.state, row.reason) for row in rows] == [
            *[("missed", "superseded")] * (len(rows) - 1),
            ("queued", None),
        ]
        assert len(rows) in EVERY_15_MINUTES_OF_3_HOURS

    def test_all_queues_every_slot(self, account, outage, ledger):
        work = scheduled(every(minutes=15), misfire="all")
        outage(work, hours=3)
        account(work)

        states = ledger.states("work")
        assert set(states) == {"queued"}
        assert len(states) in EVERY_15_MINUTES_OF_3_HOURS

    def test_skip_records_every_late_slot(self, account, outage, ledger, now):
        work = scheduled(every(minutes=15), misfire="skip")
        outage(work, hours=3)
        account(work)

        rows = ledger.runs("work")
        late = [row for row in rows if now() - row.slot > slots.TOLERANCE + timedelta(seconds=2)]
        assert {(row.state, row.reason) for row in late} == {("missed", "policy")}
        assert len(rows) in EVERY_15_MINUTES_OF_3_HOURS

    @pytest.mark.parametrize("misfire", ["latest", "all"])
    def test_nothing_is_run_later_than_its_grace(self, account, outage, ledger, misfire):
        work = scheduled(every(hours=1), misfire=misfire, misfire_grace=timedelta(hours=2))
        outage(work, hours=24)
        account(work)

        reasons = Counter((row.state, row.reason) for row in ledger.runs("work"))
        assert reasons[("missed", "grace")] in {21, 22}
        assert reasons[("queued", None)] == (2 if misfire == "all" else 1)
        assert sum(reasons.values()) in {23, 24}

    def test_a_newest_slot_past_its_grace_is_not_run(self, account, outage, ledger):
        yesterday = scheduled(cron("0 0 1 1 *"), misfire_grace=timedelta(seconds=1))
        outage(yesterday, days=366)
        account(yesterday)

        assert {(row.state, row.reason) for row in ledger.runs("work")} == {("missed", "grace")}

    def test_a_slot_in_time_is_queued_whatever_the_policy(self, account, outage, ledger):
        work = scheduled(every(seconds=1), misfire="skip")
        outage(work, seconds=10)
        account(work)

        assert set(ledger.states("work")) == {"queued"}

    @pytest.mark.parametrize("misfire", ["latest", "all", "skip"])
    @pytest.mark.parametrize(
        ("schedule", "span"),
        [
            (every(seconds=1), {"minutes": 10}),
            (every(seconds=30), {"hours": 8}),
            (cron("*/7 3-5 * * *", tz="Europe/London"), {"days": 5}),
        ],
        ids=str,
    )
    def test_after_any_outage_there_is_one_row_for_each_slot(self, account, outage, ledger, misfire, schedule, span):
        work = scheduled(schedule, misfire=misfire)
        since = outage(work, **span)
        account(work)
        until = ledger.value("SELECT accounted_until FROM rota_schedules")

        assert [row.slot for row in ledger.runs("work")] == list(schedule.between(since, until))

    def test_a_second_job_in_an_outage_does_not_disturb_the_first(self, account, outage, ledger):
        work = scheduled(every(minutes=15))
        other = job("other", schedule=every(minutes=20), queue="other")(lambda run: None)
        outage(work, hours=1)
        outage(other, hours=1)
        account(work, other)

        assert len(ledger.runs("work")) in {3, 4}
        assert len(ledger.runs("other")) in {2, 3}
        assert {row.queue for row in ledger.runs("other")} == {"other"}

    def test_a_day_of_seconds_is_accounted_for_in_bounded_passes_and_its_newest_slot_runs(
        self, database, ledger, carrier, outage, monkeypatch
    ):
        monkeypatch.setattr(accounting, "MOST_AT_ONCE", 2_000)
        work = scheduled(every(seconds=1))
        since = outage(work, hours=2)
        sizes = []
        with databases.autocommit(database) as connection:
            accountant = Accountant(registry_of(work), slots.watermarks(connection))
            for _ in range(5):
                accountant.account(connection, carrier)
                sizes.append(ledger.value("SELECT count(*) FROM rota_runs"))

        assert sizes[:3] == [2_000, 4_000, 6_000]
        rows = ledger.runs("work")
        assert [row.slot for row in rows] == list(work.schedule.between(since, rows[-1].slot))
        assert rows[-1].state == "queued"
        assert {row.state for row in rows[:-35]} == {"missed"}
        assert {run.run_id for run in carrier.runs} == {row.id for row in rows if row.state == "queued"}


class TestQueuedAndLate:
    """Slots that were queued in time, and that no worker has started."""

    @pytest.fixture
    def queue(self, database, now):
        """Queue slots of these ages, in minutes."""

        def queue(work, *ages):
            rows = [SlotRow(now() - timedelta(minutes=age)) for age in ages]
            with databases.autocommit(database) as connection:
                return slots.insert(connection, work, rows, carried=True)

        return queue

    @pytest.fixture
    def miss(self, database):
        def miss(*jobs):
            with databases.autocommit(database) as connection:
                miss_late(connection, registry_of(*jobs))

        return miss

    def outcomes(self, ledger):
        return [(row.state, row.reason) for row in ledger.runs("work")]

    def test_all_but_the_newest_are_superseded(self, queue, miss, ledger):
        work = scheduled(every(minutes=1))
        queue(work, 3, 2, 1)
        miss(work)

        assert self.outcomes(ledger) == [("missed", "superseded"), ("missed", "superseded"), ("queued", None)]

    def test_those_in_time_are_left_alone(self, queue, miss, ledger):
        work = scheduled(every(seconds=1))
        queue(work, 0.3, 0.2, 0.1)
        miss(work)

        assert set(ledger.states("work")) == {"queued"}

    def test_all_are_kept_by_a_job_that_wants_all(self, queue, miss, ledger):
        work = scheduled(every(minutes=1), misfire="all")
        queue(work, 3, 2, 1)
        miss(work)

        assert set(ledger.states("work")) == {"queued"}

    def test_none_is_kept_by_a_job_that_skips(self, queue, miss, ledger):
        work = scheduled(every(minutes=1), misfire="skip")
        queue(work, 3, 2, 1)
        miss(work)

        assert set(self.outcomes(ledger)) == {("missed", "policy")}

    def test_those_past_their_grace_are_missed(self, queue, miss, ledger):
        work = scheduled(every(minutes=1), misfire="all", misfire_grace=timedelta(minutes=2))
        queue(work, 3, 1)
        miss(work)

        assert self.outcomes(ledger) == [("missed", "grace"), ("queued", None)]

    @pytest.mark.parametrize("misfire", ["latest", "all", "skip"])
    def test_a_retry_is_never_dropped_for_being_old(self, queue, miss, ledger, misfire):
        work = scheduled(every(minutes=1), misfire=misfire, misfire_grace=timedelta(minutes=2))
        queue(work, 600, 60, 1)
        ledger.do("UPDATE rota_runs SET state = 'retrying', attempt = 1, failures = 1")
        miss(work)

        assert set(ledger.states("work")) == {"retrying"}

    def test_a_run_at_work_is_never_missed(self, queue, miss, ledger, process, database):
        work = scheduled(every(minutes=1), overlap="allow")
        for run_id in queue(work, 600, 60, 1):
            process.lease(database, run_id)
        miss(work)

        assert set(ledger.states("work")) == {"running"}

    def test_requests_without_a_slot_are_never_missed(self, queue, miss, ledger):
        work = scheduled(every(minutes=1), misfire="skip")
        ledger.request(due_at=datetime(2020, 1, 1, tzinfo=UTC))
        miss(work)

        assert ledger.states("work") == ["queued"]

    def test_a_slot_of_another_job_supersedes_nothing(self, queue, miss, ledger):
        work = scheduled(every(minutes=1))
        other = job("other", schedule=every(minutes=1))(lambda run: None)
        queue(work, 2)
        queue(other, 1)
        miss(work, other)

        assert ledger.states("work") == ledger.states("other") == ["queued"]
