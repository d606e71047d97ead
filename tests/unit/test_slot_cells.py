"""Binning: a cell shows its worst slot and how many of these it has, and neighbours alike are one stretch."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from core import cron, every
from core.operations import strip_windows
from core.operations.slot_cells import OUTCOMES, Event, Stretch, stretches

LONDON = ZoneInfo("Europe/London")
AT = datetime(2026, 11, 27, 20, 24, 18, tzinfo=UTC)


def event(cell, outcome, slots=1, reason=None, minute=0, run=7):
    slot = AT.replace(minute=minute)
    return Event(cell, outcome, reason, slots, slot, slot, run)


def drawn(*args, unrecorded=(), to_come=()):
    return [(each.outcome, each.cells, each.count, each.slots) for each in stretches(*args, unrecorded, to_come)]


class TestStretches:
    def test_successes_are_one_stretch(self):
        assert drawn([0, 1, 2], [30, 30, 12], []) == [("succeeded", (0, 1, 2), 72, 72)]

    def test_a_cell_shows_its_worst_slot_and_how_many_there_are(self):
        found = drawn([0, 1, 2], [30, 30, 30], [event(1, "skipped", 5), event(1, "missed", 9), event(1, "late", 2)])

        assert found == [
            ("succeeded", (0,), 30, 30),
            ("missed", (1,), 9, 30),
            ("succeeded", (2,), 30, 30),
        ]

    @pytest.mark.parametrize("place", range(3, len(OUTCOMES)))
    def test_each_outcome_hides_the_one_before(self, place):
        worse, better = OUTCOMES[place], OUTCOMES[place - 1]

        assert drawn([4], [2], [event(4, better), event(4, worse)]) == [(worse, (4,), 1, 2)]

    def test_neighbours_alike_share_their_sum_and_the_first_run(self):
        events = [event(1, "dead", 1, "retries", 15, run=8), event(0, "dead", 2, "retries", 0, run=5)]

        (found,) = stretches([0, 1], [2, 1], events, (), ())

        assert (found.cells, found.count, found.slots, found.run) == ((0, 1), 3, 3, 5)
        assert (found.first, found.last) == (AT.replace(minute=0), AT.replace(minute=15))

    def test_neighbours_with_other_reasons_are_apart(self):
        found = drawn([0, 1], [1, 1], [event(0, "missed", reason="grace"), event(1, "missed", reason="superseded")])

        assert found == [("missed", (0,), 1, 1), ("missed", (1,), 1, 1)]

    def test_the_reason_is_that_of_most_slots(self):
        (found,) = stretches([0], [9], [event(0, "missed", 3, "grace"), event(0, "missed", 6, "superseded")], (), ())

        assert (found.reason, found.count) == ("superseded", 9)

    def test_slots_not_on_record_and_slots_to_come_have_cells_of_their_own(self):
        found = drawn([0, 3], [4, 4], [], unrecorded={1, 2}, to_come={4, 5})

        assert found == [
            ("succeeded", (0,), 4, 4),
            ("not on record", (1, 2), None, None),
            ("succeeded", (3,), 4, 4),
            ("to come", (4, 5), None, None),
        ]

    def test_slots_that_are_not_counted_have_no_number(self):
        assert stretches([0, 1], None, [], (), ()) == [Stretch("succeeded", (0, 1), None, None)]

    def test_a_gap_without_slots_on_record_is_drawn(self):
        assert drawn([], [], [event(3, "missed", 480)]) == [("missed", (3,), 480, 480)]


class TestWindows:
    def test_24_hours_are_bins_of_15_minutes_that_end_after_now(self):
        at = strip_windows.window("24h", AT, LONDON)

        assert (len(at.edges), at.before) == (97, datetime(2026, 11, 27, 21, tzinfo=UTC))
        assert at.edges[1] - at.edges[0] == timedelta(minutes=15)

    def test_7_days_are_hours(self):
        at = strip_windows.window("7d", AT, LONDON)

        assert (len(at.edges), at.after) == (169, datetime(2026, 11, 20, 21, tzinfo=UTC))

    def test_90_days_are_the_days_of_a_zone_whose_clocks_change(self):
        at = strip_windows.window("90d", AT, LONDON)

        assert len(at.edges) == 91
        assert at.edges[0] == datetime(2026, 8, 29, 23, tzinfo=UTC)  # midnight in summer
        assert at.edges[-1] == datetime(2026, 11, 28, tzinfo=UTC)
        longest = max(after - before for before, after in zip(at.edges, at.edges[1:], strict=False))
        assert longest == timedelta(hours=25)

    @pytest.mark.parametrize(
        ("schedule", "is_exact"),
        [
            (every(minutes=10), True),
            (every(minutes=9), False),
            (cron("40 3 * * *", tz="Europe/London"), True),
            (cron("0,5 3 * * *"), False),
        ],
        ids=str,
    )
    def test_slots_ten_minutes_apart_have_cells_of_their_own(self, schedule, is_exact):
        assert strip_windows.is_exact(schedule, strip_windows.window("24h", AT, LONDON)) is is_exact
        assert not strip_windows.is_exact(schedule, strip_windows.window("7d", AT, LONDON))


class TestSlotsWithoutRows:
    def test_of_a_schedule_with_cells_of_its_own(self):
        schedule, at = cron("40 * * * *"), strip_windows.window("24h", AT, LONDON)
        (third, second) = (AT.replace(hour=hour, minute=40, second=0) for hour in (17, 18))
        recorded = [strip_windows.second(AT.replace(hour=19, minute=40, second=0))]

        found = strip_windows.unrecorded(schedule, at, recorded, third - timedelta(minutes=1))

        assert found == {strip_windows.second(third), strip_windows.second(second)}
        assert strip_windows.to_come(schedule, at, recorded) == {strip_windows.second(AT.replace(minute=40, second=0))}

    def test_of_a_daily_slot_in_bins_of_an_hour(self):
        schedule, at = cron("40 3 * * *"), strip_windows.window("7d", AT, LONDON)

        found = strip_windows.unrecorded(schedule, at, [6, 30], at.after)

        assert sorted(found) == [54, 78, 102, 126, 150]  # at 03:40, and the bins begin at 21:00

    def test_of_a_fast_schedule_in_bins(self):
        at = strip_windows.window("24h", AT, LONDON)

        assert sorted(strip_windows.unrecorded(every(seconds=30), at, range(90), at.after)) == [90, 91, 92, 93]
        assert sorted(strip_windows.to_come(every(seconds=30), at, range(94))) == [94, 95]

    def test_a_slot_of_the_last_30_seconds_is_still_to_come(self):
        now = AT.replace(second=10)
        at = strip_windows.window("24h", now, LONDON)
        slot = strip_windows.second(now.replace(second=0))

        assert slot in strip_windows.to_come(cron("24 * * * *"), at, ())
        assert slot not in strip_windows.unrecorded(cron("24 * * * *"), at, (), at.after)

    def test_the_next_slots_come_after_now(self):
        assert strip_windows.coming(cron("24,25,26 20 * * *"), AT)[0] == AT.replace(minute=25, second=0)
        assert strip_windows.coming(every(seconds=30), AT) == [
            AT.replace(second=30),
            AT.replace(minute=25, second=0),
            AT.replace(minute=25, second=30),
        ]
