"""I4, I8: every slot of an outage has an outcome, for each policy, also in nights in which clocks change.

The test sets the accountant's clock; an outage is a watermark in the past. ``outcomes`` states the policies a second
time, over plain lists.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from core import cron, every, job
from core import database as databases
from core.dispatcher.accounting import Accountant
from core.ledger import history, slots
from core.ledger.slots import SlotRow, Watermark
from core.observability.events import SlotMissed
from core.scheduling.misfires import HEAD_START, miss_late
from core.testing import registry_of
from tests.support.emitted import emitted

#: Clocks go forward at 01:00 UTC on the first date, and back at 01:00 UTC on the second.
FORWARD, BACK = datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)
SCHEDULES = [
    every(minutes=15),
    cron("30 1 * * *", tz="Europe/London"),
    cron("0 0,1,2,3 * * *", tz="Europe/London"),
    cron("*/20 * * * *", tz="Europe/London"),
]
OUTAGES = [timedelta(minutes=50), timedelta(hours=7), timedelta(days=4)]


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
def account_at(database, carrier, monkeypatch):
    """Let a new leader account for a job as if it were ``now``, in as many passes as are needed."""

    def account(work, now, passes=1):
        monkeypatch.setattr(history, "NOW", text(f"SELECT timestamptz '{now.isoformat()}'"))
        with databases.autocommit(database) as connection:
            accountant = Accountant(registry_of(work), slots.watermarks(connection))
            for _ in range(passes):
                accountant.account(connection, carrier)

    return account


@pytest.fixture
def outage(database, account_at, ledger):
    """Simulate an outage from ``since`` to ``now``. Return the slots and their outcomes."""

    def outage(work, since, now, passes=1):
        with databases.autocommit(database) as connection:
            slots.account(connection, {work.name: Watermark(str(work.schedule), since)})
        account_at(work, now, passes)
        return [(row.slot, row.state, row.reason) for row in ledger.runs(work.name)]

    return outage


def outcomes(due, now, *, misfire, grace, cap):
    """Return, by the policy, which of the slots that are late and within their grace are run."""
    late = [slot for slot in due if now - slot > timedelta(seconds=30)]
    in_grace = [slot for slot in late if now - slot <= grace]
    in_time = [slot for slot in due if slot not in late]
    newest_first = [*reversed(in_time), *reversed(in_grace)]
    most = {"latest": 1, "all": cap, "skip": 0}[misfire]
    run = {*in_time, *newest_first[:most]}
    why = {"latest": "superseded", "all": "capped", "skip": "policy"}[misfire]
    return [
        (slot, "queued", None) if slot in run else (slot, "missed", why if slot in in_grace else "grace")
        for slot in due
    ]


@pytest.mark.parametrize("misfire", ["latest", "all", "skip"])
@pytest.mark.parametrize("lasting", OUTAGES, ids=str)
@pytest.mark.parametrize("night", [FORWARD, BACK], ids=["forward", "back"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
class TestNightsOnWhichClocksChange:
    @pytest.mark.parametrize(("grace", "cap"), [(timedelta(hours=6), 1000), (timedelta(days=30), 5)])
    def test_every_slot_has_the_outcome_that_its_policy_says(
        self, outage, schedule, night, lasting, misfire, grace, cap
    ):
        work = job("work", schedule=schedule, misfire=misfire, misfire_grace=grace, misfire_cap=cap)(lambda run: None)
        now = night + timedelta(hours=3, minutes=7)
        since = now - lasting

        found = outage(work, since, now)

        due = list(schedule.between(since, now))
        assert found == outcomes(due, now, misfire=misfire, grace=grace, cap=cap)
        assert len({slot for slot, _, _ in found}) == len(found)


class TestByHandOfTheCalendar:
    """The same nights, with slots that are listed by hand instead of computed."""

    def test_half_past_one_when_clocks_go_forward_comes_once_after_the_gap(self, outage):
        work = job(
            "work", schedule=cron("30 1 * * *", tz="Europe/London"), misfire="all", misfire_grace=timedelta(days=9)
        )(lambda run: None)

        found = outage(work, at("2026-03-27 12:00"), at("2026-03-30 12:00"))

        assert [slot for slot, _, _ in found] == [
            at("2026-03-28 01:30"),
            at("2026-03-29 01:00"),  # 01:30 does not exist; 02:00 BST is right after the skipped hour
            at("2026-03-30 00:30"),
        ]

    def test_half_past_one_when_clocks_go_back_comes_the_first_time_only(self, outage):
        work = job("work", schedule=cron("30 1 * * *", tz="Europe/London"), misfire="skip")(lambda run: None)

        found = outage(work, at("2026-10-23 12:00"), at("2026-10-26 12:00"))

        assert found == [
            (at("2026-10-24 00:30"), "missed", "grace"),
            (at("2026-10-25 00:30"), "missed", "grace"),
            (at("2026-10-26 01:30"), "missed", "grace"),
        ]

    def test_a_wildcard_runs_in_both_passes_of_the_repeated_hour_and_latest_takes_the_last(self, outage):
        work = job("work", schedule=cron("*/30 1 * * *", tz="Europe/London"))(lambda run: None)

        found = outage(work, at("2026-10-24 12:00"), at("2026-10-25 02:10"))

        assert found == [
            (at("2026-10-25 00:00"), "missed", "superseded"),
            (at("2026-10-25 00:30"), "missed", "superseded"),
            (at("2026-10-25 01:00"), "missed", "superseded"),
            (at("2026-10-25 01:30"), "queued", None),
        ]

    def test_a_wildcard_does_not_run_in_the_hour_that_is_skipped(self, outage):
        work = job("work", schedule=cron("*/30 1 * * *", tz="Europe/London"), misfire="all")(lambda run: None)

        assert outage(work, at("2026-03-28 12:00"), at("2026-03-29 04:00")) == []


class TestCap:
    """With misfire="all", only the newest slots up to the cap are run, and the log has the number of the others."""

    def test_after_days_of_seconds_no_more_than_the_cap_is_queued(self, outage, caplog, ledger, carrier):
        work = job("work", schedule=every(seconds=5), misfire="all", misfire_grace=timedelta(days=9))(lambda run: None)
        now = at("2026-06-10 12:00:00") + timedelta(seconds=1)

        found = outage(work, now - timedelta(days=2), now, passes=5)

        due = list(work.schedule.between(now - timedelta(days=2), now - HEAD_START))
        assert [slot for slot, _, _ in found] == due
        assert Counter((state, reason) for _, state, reason in found) == {
            ("queued", None): 1000,
            ("missed", "capped"): len(due) - 1000,
        }
        assert [slot for slot, state, _ in found if state == "queued"] == due[-1000:]
        assert len(carrier.runs) == 1000
        told = emitted(caplog, "slot.missed")
        assert told[0] == SlotMissed("work", 10000, "capped: 10000", "misfire=all; 0 of the late slots still run")
        assert told[-1].note == "misfire=all; 1000 of the late slots still run"

    def test_what_is_left_by_grace_and_by_cap_is_told_apart(self, outage, caplog):
        work = job("work", schedule=every(minutes=1), misfire="all", misfire_grace=timedelta(hours=1), misfire_cap=20)(
            lambda run: None
        )
        now = at("2026-06-10 12:00:40")

        outage(work, now - timedelta(hours=2), now)

        missed = SlotMissed("work", 100, "capped: 40, grace: 60", "misfire=all; 20 of the late slots still run")
        assert missed in emitted(caplog, "slot.missed")

    def test_slots_that_were_queued_while_all_workers_were_away_are_capped_as_well(self, ledger, database, caplog):
        work = job("work", schedule=every(minutes=1), misfire="all", misfire_cap=3)(lambda run: None)
        now = ledger.value("SELECT clock_timestamp()")
        rows = [SlotRow(now - timedelta(minutes=minutes)) for minutes in range(9, 0, -1)]
        with databases.autocommit(database) as connection:
            slots.insert(connection, work, rows, carried=True)
            for _ in range(2):
                miss_late(connection, registry_of(work))

        found = [(row.state, row.reason) for row in ledger.runs("work")]
        assert found == [("missed", "capped")] * 6 + [("queued", None)] * 3
        missed = SlotMissed("work", 6, "capped: 6", "no worker started them in time")
        assert emitted(caplog, "slot.missed") == [missed]

    def test_each_key_has_a_cap_of_its_own(self, ledger, database):
        work = job("work", schedule=every(minutes=1), misfire="all", misfire_cap=1)(lambda run: None)
        now = ledger.value("SELECT clock_timestamp()")
        for key in ("a", "b"):
            for minutes in (2, 1):
                ledger.request(key=key, slot=now - timedelta(minutes=minutes))
        with databases.autocommit(database) as connection:
            miss_late(connection, registry_of(work))

        assert Counter(ledger.states("work")) == {"missed": 2, "queued": 2}
