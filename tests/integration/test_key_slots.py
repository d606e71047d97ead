"""I2, I8: slots of schedules made at run time. Each comes due once, and each has an outcome or is in a gap row.

The dispatcher's clock is set, and moves from now into the future.
"""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from core import (
    Keyed,
    KeySchedule,
    cron,
    every,
    job,
    pause_schedule,
    resume_schedule,
    schedule,
    schedules,
    settings,
    sync_schedules,
    unschedule,
)
from core import database as databases
from core.dispatcher.accounting import Accountant
from core.dispatcher.key_slots import KeyAccountant
from core.dispatcher.loop import Dispatcher
from core.jobs.grid import grid
from core.ledger import key_slots, orphans, pauses, releases, retention
from core.ledger.releases import Fleet
from core.testing import registry_of
from tests.support.emitted import emitted
from tests.support.eventually import eventually

MINUTE, HOUR, SECOND = timedelta(minutes=1), timedelta(hours=1), timedelta(seconds=1)
KEYED = Keyed(default=every(seconds=60))


@pytest.fixture
def poll():
    return job("poll", queue="mail", keyed=KEYED)(lambda run: None)


@pytest.fixture
def session(database):
    with Session(database) as session:
        yield session


@pytest.fixture
def slots(ledger):
    return lambda key="42", job="poll": [
        row.slot
        for row in ledger.rows(
            "SELECT slot FROM rota_runs WHERE job = :job AND key = :key AND slot IS NOT NULL ORDER BY slot",
            job=job,
            key=key,
        )
    ]


@pytest.fixture
def row(ledger):
    def row(key="42"):
        (found,) = ledger.rows("SELECT * FROM rota_key_schedules WHERE key = :key", key=key)
        return found

    return row


@pytest.fixture
def gaps(ledger):
    return lambda: [(each.key, each.reason, each.slots) for each in ledger.rows("SELECT * FROM rota_gaps ORDER BY id")]


def put(session, key="42", job="poll", **options):
    schedule(session, job, key=key, **options)
    session.commit()


def due_of(row, after, until):
    return list(grid(row.spec, row.phase, row.stretched).between(after, until))


class TestComingDue:
    def test_the_first_slot_comes_within_one_interval_and_then_each(self, lead, poll, session, slots, row):
        leader = lead(poll)
        put(session, every=MINUTE)
        leader.passes(SECOND)
        seen_at = leader.now

        leader.passes(5 * MINUTE)

        assert row().since == seen_at
        assert slots() == due_of(row(), seen_at, leader.now)
        assert len(slots()) == 5
        assert slots()[0] <= seen_at + MINUTE

    def test_a_slot_is_inserted_with_its_jobs_queue_and_its_schedules_arguments(self, lead, session, ledger, use_jobs):
        def work(run, account: int = 0):
            pass

        leader = lead(job("poll", queue="mail", keyed=KEYED, priority=1)(work))
        put(session, key="1", every=MINUTE, args={"account": 1})
        put(session, key="2", every=MINUTE, priority=7)

        leader.passes(2 * MINUTE)

        found = {run.key: (run.queue, run.args, run.priority, run.exclusive, run.state) for run in ledger.runs("poll")}
        assert found == {
            "1": ("mail", {"account": 1}, 1, True, "queued"),
            "2": ("mail", {}, 7, True, "queued"),
        }
        assert all(run.due_at == run.slot and run.sent_at is None for run in ledger.runs("poll"))

    def test_a_row_that_commits_late_counts_from_when_it_is_seen(self, lead, poll, session, row, slots):
        leader = lead(poll)
        leader.passes(SECOND)
        schedule(session, "poll", key="42", every=timedelta(seconds=10))
        leader.passes(MINUTE)
        session.commit()
        committed_at = leader.now

        leader.passes(MINUTE)

        assert row().since == committed_at + SECOND
        assert slots() == due_of(row(), committed_at + SECOND, leader.now)

    def test_two_leaders_insert_a_slot_once(self, lead, poll, session, slots):
        leader = lead(poll)
        put(session, every=timedelta(seconds=10))
        leader.passes(MINUTE)
        before = slots()
        other = KeyAccountant(leader.registry)
        leader.accountant, first = other, leader.accountant
        leader.passes(MINUTE)
        leader.accountant = first

        leader.pass_at(leader.now)

        found = slots()
        assert len(found) == len(set(found)) == len(before) + 6

    def test_of_two_leaders_at_once_only_one_accounts(self, lead, poll, session, slots, database):
        leader = lead(poll)
        put(session, every=timedelta(seconds=10))
        leader.passes(SECOND)
        first = leader.connection

        leader.is_replaced()
        with databases.dedicated(database) as leader.connection:
            leader.passes(MINUTE)
            assert slots() == []
            first.close()
            leader.passes(MINUTE)

        assert len(slots()) > 3

    def test_a_new_leader_goes_on_where_the_last_one_ended(self, lead, poll, session, slots, row):
        leader = lead(poll)
        put(session, every=timedelta(seconds=10))
        leader.passes(MINUTE)

        leader.is_replaced()
        leader.passes(MINUTE)

        assert slots() == due_of(row(), row().since, leader.now)

    def test_a_job_of_another_process_has_slots_too(self, lead, poll, session, slots, database):
        leader = lead(poll)
        put(session, every=timedelta(seconds=10))
        release = releases.of(leader.registry)
        leader.accountant = KeyAccountant(registry_of())
        leader.fleet = Fleet(keyed=dict(release.jobs))

        leader.passes(MINUTE)

        assert len(slots()) in (5, 6)

    def test_each_of_many_intervals_and_crons_has_the_slots_of_its_grid(self, lead, session, ledger, slots):
        chosen = random.Random(14)
        leader = lead(job("poll", keyed=Keyed(least=10 * SECOND, most=HOUR), misfire="all")(lambda run: None))
        wanted = [KeySchedule(f"every-{number}", chosen.randint(10, 600) * SECOND) for number in range(150)]
        wanted += [
            KeySchedule(f"cron-{number}", cron=cron("*/3 * * * *", tz="Asia/Kolkata"), spread=5 * MINUTE)
            for number in range(20)
        ]
        wanted += [KeySchedule(f"utc-{number}", cron=cron("*/7 * * * *")) for number in range(3)]
        sync_schedules(session, "poll", wanted)
        session.commit()
        leader.passes(SECOND)
        ledger.do(
            "UPDATE rota_key_schedules SET stretched = 2, stretched_since = since, stretch = 2 WHERE phase % 5 = 0"
        )

        leader.passes(2 * MINUTE)
        leader.passes(8 * MINUTE, step=28 * SECOND)  # slots of long windows are found by reading all schedules

        for each in ledger.rows("SELECT * FROM rota_key_schedules"):
            assert slots(each.key) == due_of(each, each.since, leader.now), each


class TestChanging:
    @pytest.mark.parametrize(("before", "after"), [(60, 600), (600, 60), (60, 3600), (90, 70)])
    def test_the_first_slot_after_a_change_is_the_earlier_of_the_old_next_and_the_new_next(
        self, lead, session, slots, row, before, after
    ):
        leader = lead(job("poll", keyed=Keyed(most=HOUR))(lambda run: None))
        put(session, every=before * SECOND)
        leader.passes(3 * MINUTE)
        old, changed_at = row(), leader.now
        put(session, every=after * SECOND)

        leader.passes(2 * HOUR, step=20 * SECOND)

        old_next = grid(old.spec, old.phase).next_after(changed_at)
        new = due_of(row(), changed_at, leader.now)
        assert row().since == changed_at
        assert [slot for slot in slots() if slot > changed_at] == ([old_next, *new] if old_next < new[0] else new)

    def test_a_change_to_cron_keeps_the_next_slot_as_well(self, lead, poll, session, slots, row):
        leader = lead(poll)
        put(session, every=MINUTE)
        leader.passes(2 * MINUTE)
        old, changed_at = row(), leader.now
        put(session, cron=cron("0 3 * * *", tz="Europe/London"), spread=10 * MINUTE)

        leader.passes(5 * MINUTE)

        assert [slot for slot in slots() if slot > changed_at] == [grid(old.spec, old.phase).next_after(changed_at)]
        assert row().every_seconds is None

    def test_waiting_slots_stay_when_the_interval_changes(self, lead, poll, session, ledger):
        leader = lead(poll)
        put(session, every=MINUTE)
        leader.passes(2 * MINUTE)
        put(session, every=10 * MINUTE)
        leader.passes(SECOND)

        assert ledger.states("poll") == ["queued"] * len(ledger.states("poll"))
        assert ledger.states("poll")

    def test_new_arguments_are_those_of_the_next_slot(self, lead, session, ledger, row):
        def work(run, account: int = 0):
            pass

        leader = lead(job("poll", keyed=KEYED)(work))
        put(session, every=MINUTE, args={"account": 1})
        leader.passes(SECOND)
        leader.passes(MINUTE)
        since = row().since
        put(session, every=MINUTE, args={"account": 2})
        leader.passes(MINUTE)

        assert [run.args["account"] for run in ledger.runs("poll")] == [1, 2]
        assert row().since == since

    def test_a_removed_schedule_has_no_more_slots(self, lead, poll, session, slots):
        leader = lead(poll)
        put(session, every=timedelta(seconds=10))
        leader.passes(MINUTE)
        before = slots()
        unschedule(session, "poll", key="42")
        session.commit()

        leader.passes(MINUTE)

        assert slots() == before

    def test_a_schedule_that_is_removed_and_made_again_goes_on(self, lead, poll, session, slots, row, ledger):
        leader = lead(poll)
        put(session, every=MINUTE)
        leader.passes(2 * MINUTE)
        unschedule(session, "poll", key="42")
        schedule(session, "poll", key="42", every=2 * MINUTE)
        session.commit()
        made_at = leader.now

        leader.passes(4 * MINUTE)

        assert [slot for slot in slots() if slot > made_at] == due_of(row(), made_at + SECOND, leader.now)
        assert {run.schedule_id for run in ledger.runs("poll") if run.slot > made_at} == {row().id}

    def test_the_log_tells_what_was_in_force_and_since_when(self, lead, poll, session, ledger):
        leader = lead(poll)
        put(session, every=MINUTE)
        leader.passes(MINUTE)
        changed_at = leader.now
        put(session, every=2 * MINUTE)
        leader.passes(MINUTE)
        removed_at = leader.now
        unschedule(session, "poll", key="42")
        session.commit()
        leader.passes(SECOND)

        found = ledger.rows("SELECT * FROM rota_key_schedule_log ORDER BY id")
        assert [(each.action, each.spec) for each in found] == [
            ("added", "every 1m"), ("changed", "every 2m"), ("removed", "every 2m")
        ]  # fmt: skip
        # the removal applies from the previous pass on, whose last slots may have no runs
        assert [each.since for each in found[1:]] == [changed_at, removed_at - SECOND]


class TestPausing:
    def test_no_slot_comes_due_in_a_pause_and_one_gap_row_tells_how_many_at_its_end(
        self, lead, poll, session, slots, row, gaps
    ):
        leader = lead(poll)
        put(session, every=timedelta(seconds=10))
        leader.passes(MINUTE)
        paused_at, before = leader.now, slots()
        pause_schedule(session, "poll", key="42", reason="wrong password")
        session.commit()

        leader.passes(10 * MINUTE, step=10 * SECOND)
        assert slots() == before
        assert gaps() == []

        resume_schedule(session, "poll", key="42")
        session.commit()
        resumed_at = leader.now
        leader.passes(MINUTE)

        assert gaps() == [("42", "paused", 60)]
        assert slots() == [*before, *due_of(row(), resumed_at, leader.now)]
        assert len(due_of(row(), paused_at, resumed_at)) == 60

    def test_a_pause_ends_by_itself(self, lead, poll, session, slots, row, gaps, ledger):
        leader = lead(poll)
        put(session, every=timedelta(seconds=10))
        leader.passes(MINUTE)
        paused_at, until = leader.now, leader.now + 5 * MINUTE
        pause_schedule(session, "poll", key="42", until=until)
        session.commit()

        leader.passes(10 * MINUTE)

        swallowed = len(due_of(row(), paused_at, until - SECOND))
        assert gaps() == [("42", "paused", swallowed)]
        assert len(slots()) == len(due_of(row(), row().since, leader.now)) - swallowed
        assert [each.action for each in ledger.rows("SELECT action FROM rota_key_schedule_log ORDER BY id")] == [
            "added", "paused", "resumed"
        ]  # fmt: skip

    def test_a_change_in_a_pause_leaves_it_and_counts_both_schedules(self, lead, poll, session, slots, row, gaps):
        leader = lead(poll)
        put(session, every=timedelta(seconds=10))
        pause_schedule(session, "poll", key="42")
        session.commit()
        leader.passes(SECOND)
        leader.passes(MINUTE)
        put(session, every=timedelta(seconds=20))
        leader.passes(MINUTE)
        resume_schedule(session, "poll", key="42")
        session.commit()
        resumed_at = leader.now

        leader.passes(SECOND)

        extra = row().extra_at is not None  # the next slot of the former interval, which also came due in the pause
        assert gaps() == [("42", "paused", 6), ("42", "paused", 3 + extra)]
        assert all(slot > resumed_at for slot in slots())

    def test_the_pause_of_a_job_is_one_gap_row_for_all_keys(self, lead, poll, session, slots, gaps, database, ledger):
        leader = lead(poll)
        sync_schedules(session, "poll", [KeySchedule(str(number), 10 * SECOND) for number in range(10)])
        session.commit()
        leader.passes(SECOND)
        paused_at, until = leader.now + 10 * SECOND, leader.now + 130 * SECOND
        ledger.do(
            "INSERT INTO rota_pauses (scope, paused_by, paused_at, until) VALUES ('queue:mail', 'ann', :since, :until)",
            since=paused_at, until=until,
        )  # fmt: skip

        leader.passes(5 * MINUTE)

        assert gaps() == [(None, "paused", 120)]
        assert all(not paused_at <= slot < until for slot in slots("3"))
        assert len(slots("3")) == 30 - 12

    def test_an_unfinished_pause_of_a_job_is_accounted_for_at_its_end(self, lead, poll, session, gaps, database, slots):
        leader = lead(poll)
        put(session, every=10 * SECOND)
        leader.passes(SECOND)
        with database.begin() as connection:
            pauses.begin(connection, "job:poll", by="ann", reason=None, until=None)
        before = slots()

        leader.passes(5 * MINUTE)

        assert (slots(), gaps()) == (before, [])


class TestBackingOff:
    def test_only_every_2nd_to_the_stretch_slot_comes_due_and_a_gap_row_counts_the_others(
        self, lead, poll, session, slots, row, gaps, ledger
    ):
        leader = lead(poll)
        put(session, every=10 * SECOND)
        leader.passes(MINUTE)
        began_at = leader.now
        stretch = "UPDATE rota_key_schedules SET stretch = :to, is_seen = false, version = version + 1"
        ledger.do(stretch, to=2)

        leader.passes(8 * MINUTE)

        assert [slot for slot in slots() if slot > began_at] == due_of(row(), began_at, leader.now)
        assert len(due_of(row(), began_at, leader.now)) == 12

        ended_at = leader.now
        ledger.do(stretch, to=0)
        leader.passes(MINUTE)
        assert gaps() == [("42", "backoff", 36)]
        assert len([slot for slot in slots() if slot > ended_at]) == 6

    def test_no_upsert_ends_a_backoff(self, lead, session, row, ledger):
        leader = lead(job("poll", keyed=Keyed(backoff_after=3))(lambda run: None))
        put(session, every=10 * SECOND)
        leader.passes(SECOND)
        ledger.do("UPDATE rota_key_schedules SET stretch = 2, failures = 4, is_seen = false, version = version + 1")
        leader.passes(SECOND)
        put(session, every=20 * SECOND)
        leader.passes(SECOND)

        assert (row().stretch, row().stretched, row().failures, row().every_seconds) == (2, 2, 4, 20)


class TestAfterAnOutage:
    @pytest.fixture
    def outage(self, lead, session):
        def outage(lasting, *, keys=5, interval=MINUTE, **options):
            leader = lead(job("poll", keyed=Keyed(most=timedelta(days=1)), **options)(lambda run: None))
            sync_schedules(session, "poll", [KeySchedule(str(number), interval) for number in range(keys)])
            session.commit()
            leader.passes(SECOND)
            leader.is_replaced()
            leader.pass_at(leader.now + lasting)
            return leader

        return outage

    def test_frequent_keys_skip_what_is_late_by_default(self, outage, ledger, gaps, slots, row):
        leader = outage(HOUR)

        in_time = {key: due_of(row(key), leader.now - 30 * SECOND, leader.now) for key in "01234"}
        assert {key: slots(key) for key in "01234"} == in_time
        ((key, reason, count),) = gaps()
        assert (key, reason) == (None, "outage")
        total = sum(len(due_of(row(key), row(key).since, leader.now)) for key in "01234")
        assert count == total - sum(map(len, in_time.values()))

    def test_latest_runs_the_newest_slot_of_each_key(self, outage, gaps, slots, row):
        leader = outage(10 * HOUR, interval=HOUR, misfire="latest")

        for key in "01234":
            assert slots(key) == due_of(row(key), row(key).since, leader.now)[-1:]
        assert gaps() == [(None, "outage", 45)]

    def test_latest_runs_the_newest_slot_of_many_keys_part_by_part(self, outage, gaps, slots, row, monkeypatch):
        monkeypatch.setattr(key_slots, "MOST_LATE", 20)
        leader = outage(10 * HOUR, interval=HOUR, misfire="latest", keys=100)
        inserted = [leader.pass_at(leader.now) for _ in range(10)]

        first = sum(len(slots(str(key))) for key in range(100)) - sum(inserted)
        assert 0 < first <= 22
        assert max(inserted) <= 22
        assert inserted[-1] == 0
        for key in map(str, range(100)):
            assert slots(key) == due_of(row(key), row(key).since, leader.now)[-1:]
        assert sum(count for _, _, count in gaps()) == 900

    def test_latest_runs_one_slot_of_a_key_with_cron_also_if_a_newer_one_is_in_time(
        self, lead, session, gaps, slots, monkeypatch
    ):
        leader = lead(job("poll", keyed=KEYED, misfire="latest")(lambda run: None))
        put(session, key="cron", cron=cron("* * * * *"), spread=40 * SECOND)
        put(session, key="spread", cron=cron("* * * * *"))
        leader.passes(SECOND)
        leader.is_replaced()

        leader.pass_at(leader.now.replace(second=10) + HOUR)

        assert slots("spread") == [leader.now.replace(second=0)]
        assert len(slots("cron")) == 1
        assert leader.now - slots("cron")[0] < MINUTE

    def test_latest_runs_nothing_that_is_past_its_grace(self, outage, gaps, slots):
        outage(26 * HOUR, interval=20 * HOUR, misfire="latest", misfire_grace=timedelta(seconds=60), keys=20)

        assert sum(count for _, _, count in gaps()) + sum(len(slots(str(key))) for key in range(20)) >= 20
        assert sum(count for _, _, count in gaps()) >= 15

    def test_all_runs_all_within_grace_and_cap(self, outage, gaps, slots, row):
        leader = outage(3 * HOUR, misfire="all", misfire_grace=2 * HOUR, misfire_cap=90)
        for _ in range(200):
            leader.pass_at(leader.now)

        for key in "01234":
            assert slots(key) == due_of(row(key), row(key).since, leader.now)[-90:]
        assert gaps() == [(None, "outage", 5 * 90)]

    @pytest.fixture
    def cron_outage(self, lead, session, ledger):
        def cron_outage(lasting, *, stretched=0, **options):
            leader = lead(job("poll", keyed=KEYED, **options)(lambda run: None))
            for number in range(2):
                put(session, key=str(number), cron=cron("* * * * *"), spread=HOUR)
            leader.passes(SECOND)
            ledger.do("UPDATE rota_key_schedules SET phase = CASE key WHEN '0' THEN 7 ELSE 3333 END")
            ledger.do(f"UPDATE rota_key_schedules SET stretched = {stretched} WHERE key = '1'")
            leader.is_replaced()
            return leader, leader.pass_at(leader.now + lasting)

        return cron_outage

    @pytest.mark.parametrize("stretched", [0, 1])
    def test_all_runs_of_a_key_with_cron_the_newest_slots_up_to_the_cap(self, cron_outage, gaps, slots, row, stretched):
        leader, _ = cron_outage(4 * HOUR, stretched=stretched, misfire="all", misfire_cap=90)

        due = {key: due_of(row(key), row(key).since, leader.now) for key in "01"}
        assert {key: slots(key) for key in "01"} == {key: due[key][-90:] for key in "01"}
        assert gaps() == [(None, "outage", len(due["0"]) + len(due["1"]) - 180)]

    def test_all_runs_slots_of_cron_part_by_part(self, cron_outage, gaps, slots, row, monkeypatch):
        monkeypatch.setattr(key_slots, "MOST_LATE", 10)
        leader, first = cron_outage(3 * HOUR, misfire="all", misfire_cap=90)
        inserted = [first, *(leader.pass_at(leader.now) for _ in range(40))]

        assert max(inserted) <= 12
        assert sum(inserted) == 180
        for key in "01":
            assert slots(key) == due_of(row(key), row(key).since, leader.now)[-90:]
        assert [count for _, _, count in gaps()] == [180]

    @pytest.mark.parametrize("stretched", [0, 1])
    def test_latest_runs_the_newest_slot_of_cron_part_by_part(
        self, cron_outage, gaps, slots, row, stretched, monkeypatch
    ):
        monkeypatch.setattr(key_slots, "MOST_LATE", 1)
        leader, first = cron_outage(3 * HOUR, stretched=stretched, misfire="latest")
        inserted = [first, *(leader.pass_at(leader.now) for _ in range(5))]

        due = {key: due_of(row(key), row(key).since, leader.now) for key in "01"}
        assert {key: slots(key) for key in "01"} == {key: due[key][-1:] for key in "01"}
        assert sum(inserted) == 2
        assert sum(count for _, _, count in gaps()) == len(due["0"]) + len(due["1"]) - 2

    def test_every_slot_runs_or_is_in_a_gap_row_whatever_the_policy(self, lead, session, ledger, gaps, monkeypatch):
        monkeypatch.setattr(key_slots, "MOST_LATE", 50)
        for number, misfire in enumerate(["skip", "latest", "all"]):
            name = f"poll-{misfire}"
            leader = lead(
                job(name, keyed=Keyed(most=timedelta(days=1)), misfire=misfire, misfire_grace=40 * MINUTE)(
                    lambda run: None
                )
            )
            chosen = random.Random(number)
            wanted = [KeySchedule(f"{each}", chosen.randint(10, 4000) * SECOND) for each in range(40)]
            wanted += [KeySchedule(f"cron-{each}", cron=cron("*/9 * * * *"), spread=3 * MINUTE) for each in range(9)]
            sync_schedules(session, name, wanted)
            session.commit()
            leader.passes(SECOND)  # sees the schedules; their slots come later, so that all are of the stretch below
            ledger.do(
                "UPDATE rota_key_schedules SET stretched = 1, stretched_since = since, stretch = 1 WHERE phase % 3 = 0"
            )
            leader.passes(4 * SECOND)
            for outage in (20 * SECOND, 50 * MINUTE, 31 * SECOND, 3 * HOUR):
                leader.is_replaced()
                leader.pass_at(leader.now + outage)
                for _ in range(400 if misfire == "all" else 1):
                    leader.pass_at(leader.now)

            rows = ledger.rows("SELECT * FROM rota_key_schedules WHERE job = :job", job=name)
            due = Counter({each.key: len(due_of(each, each.since, leader.now)) for each in rows})
            ran = Counter(run.key for run in ledger.runs(name))
            left_out = ledger.value("SELECT sum(slots) FROM rota_gaps WHERE job = :job", job=name)
            assert all(ran[key] <= due[key] for key in due)
            assert ran.total() + left_out == due.total(), misfire
            leader.accountant = None

    def test_a_slot_that_is_queued_too_long_is_missed_by_the_policy(self, lead, poll, session, ledger, database):
        from core.scheduling.misfires import miss_late

        leader = lead(poll)
        ledger.request("poll", key="42", slot=datetime.now(UTC) - MINUTE)

        with databases.autocommit(database) as connection:
            miss_late(connection, leader.registry)

        assert [(run.state, run.reason) for run in ledger.runs("poll")] == [("missed", "policy")]


class TestSchedulesThatCannotBeRead:
    """A process of another host has stored a time zone that the leader's host lacks."""

    @pytest.fixture
    def leader(self, lead, session, ledger):
        leader = lead(
            job("poll", keyed=KEYED)(lambda run: None), job("other", keyed=KEYED, misfire="latest")(lambda run: None)
        )
        for key in ("good", "bad", "paused"):
            put(session, key=key, cron=cron("* * * * *"))
        put(session, key="42", every=MINUTE)
        put(session, key="42", job="other")
        leader.passes(SECOND)
        pause_schedule(session, "poll", key="paused")
        session.commit()
        leader.passes(SECOND)
        ledger.do("UPDATE rota_key_schedules SET spec = '* * * * * Nowhere/Land' WHERE key IN ('bad', 'paused')")
        resume_schedule(session, "poll", key="paused")
        session.commit()
        return leader

    def test_other_keys_have_their_slots_and_an_event_names_the_schedule_once(self, leader, slots, caplog):
        leader.passes(5 * MINUTE)

        assert [len(slots(key)) for key in ("good", "42", "bad", "paused")] == [5, 5, 0, 0]
        assert len(slots(job="other")) == 5
        assert [each.schedule for each in emitted(caplog, "schedule.unreadable")] == ["* * * * * Nowhere/Land"]

    def test_they_are_listed_without_a_next_slot(self, leader, session):
        found = {each.key: each.next_at for each in schedules(session, "poll")}

        assert found["good"] is not None
        assert found["bad"] is None

    def test_an_error_with_one_job_does_not_stop_the_others(self, leader, slots, monkeypatch, caplog):
        crons = key_slots.crons

        def broken(connection, name):
            if name == "poll":
                raise RuntimeError("broken")
            return crons(connection, name)

        monkeypatch.setattr(key_slots, "crons", broken)
        leader.passes(2 * MINUTE)

        assert len(slots(job="other")) == 2
        assert [each.step for each in emitted(caplog, "dispatcher.step_failed")] == ["key slots of poll"]


class TestJobsThatAreGone:
    def test_its_rows_stay_without_slots_and_a_gap_row_tells_of_the_absence(
        self, lead, poll, session, slots, row, gaps, database, ledger
    ):
        leader = lead(poll)
        put(session, every=10 * SECOND)
        leader.passes(MINUTE)
        gone_at, before = leader.now, slots()
        with databases.autocommit(database) as connection:
            assert orphans.forget_slots(connection, "poll")
        leader.accountant = KeyAccountant(registry_of())
        leader.passes(MINUTE)
        assert slots() == before

        leader.is_replaced()
        leader.now = gone_at + HOUR
        leader.passes(MINUTE)

        back_at = gone_at + HOUR + SECOND
        assert slots() == [*before, *due_of(row(), back_at, leader.now)]
        ((key, reason, count),) = gaps()
        assert (key, reason) == (None, "absent")
        assert count == len(due_of(row(), row().since, back_at)) - len(before)


class TestInTheDispatcher:
    @pytest.mark.parametrize("carries", [True, False], ids=["with Redis", "without Redis"])
    def test_a_pass_inserts_what_is_due_and_sends_it_if_redis_is_there(
        self, database, carrier, session, use_jobs, ledger, carries
    ):
        registry = use_jobs(job("poll", keyed=Keyed(least=SECOND), max_retries=0)(lambda run: None))
        carrier.carries = carries
        put(session, every=SECOND)
        dispatcher = Dispatcher(
            database, registry, carrier, every_seconds=1, resend_seconds=60, max_crashes=3, orphan_seconds=60
        )

        with databases.dedicated(database) as connection:
            accountant = Accountant(registry, {})
            passed = lambda: dispatcher.pass_once(connection, accountant)  # noqa: E731
            eventually(lambda: passed() or len(ledger.runs("poll")) > 1, within=10)
            passed()
        dispatcher.stop()

        assert {run.key for run in ledger.runs("poll")} == {"42"}
        assert bool(carrier.runs) == carries


def test_old_changes_and_gaps_are_deleted_and_young_ones_kept(session, ledger, monkeypatch):
    monkeypatch.setenv("ROTA_RETENTION_DAYS", "10")
    settings.current.cache_clear()
    for days in (11, 9):
        ledger.do(
            "INSERT INTO rota_gaps (job, began_at, ended_at, reason, slots) "
            "VALUES ('poll', now(), now() - make_interval(days => :days), 'outage', 1)",
            days=days,
        )
        ledger.do(
            "INSERT INTO rota_key_schedule_log (job, key, at, action, spec, phase) "
            "VALUES ('poll', '42', now() - make_interval(days => :days), 'added', 'every 1m', 0)",
            days=days,
        )

    retention.prune_schedules(session, checkpoint=lambda progress: session.commit(), batch=1)

    assert ledger.value("SELECT count(*) FROM rota_gaps") == 1
    assert ledger.value("SELECT count(*) FROM rota_key_schedule_log") == 1
