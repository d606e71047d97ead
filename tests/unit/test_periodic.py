"""The adapter between Rota's schedules and periodiq's loop, with a clock that the test sets."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core import cron, every
from core.jobs.schedules import Schedule
from core.scheduling.periodic import MOST_AT_ONCE, SHORTEST_WAIT, PeriodicSchedule
from core.testing import FrozenClock

SECOND = timedelta(seconds=1)
LONDON = ZoneInfo("Europe/London")
#: periodiq's own time, which the adapter must not use.
NONSENSE = datetime(1999, 1, 1, tzinfo=UTC)


class Asked:
    """A periodic schedule, its clock, and the slots that it has reported as due."""

    def __init__(self, schedule: Schedule, start: datetime) -> None:
        self.clock = FrozenClock(start)
        self.periodic = PeriodicSchedule(schedule, self.clock)
        self.fired: list[datetime] = []
        assert not self.periodic.validate(NONSENSE)

    def at(self, now: datetime) -> list[datetime]:
        """Ask at ``now``, as periodiq does. Return the slots that this question has reported."""
        self.clock.now = now
        says_yes = self.periodic.validate(NONSENSE)
        due = list(self.periodic.due)
        assert says_yes is bool(due)
        self.fired += due
        return due

    def run_until(self, end: datetime) -> list[datetime]:
        """Sleep until each next due time, and ask, as periodiq does."""
        while (wake := self.periodic.next_valid_date(NONSENSE)) <= end:
            assert wake > self.clock.now
            self.at(wake)
        return self.fired


START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_the_first_question_fires_nothing_even_on_a_slot():
    asked = PeriodicSchedule(every(seconds=30), FrozenClock(START))

    assert asked.validate(NONSENSE) is False
    assert asked.due == []


def test_a_slot_fires_when_its_time_has_come_and_not_before():
    asked = Asked(every(seconds=30), START)

    assert asked.at(START + 29.999999 * SECOND) == []
    assert asked.at(START + 30 * SECOND) == [START + 30 * SECOND]


def test_a_slot_fires_once_however_often_it_is_asked_for():
    asked = Asked(every(seconds=30), START)

    asked.at(START + 30 * SECOND)

    assert asked.at(START + 30 * SECOND) == []
    assert asked.at(START + 31 * SECOND) == []


def test_an_answer_of_no_leaves_nothing_due():
    asked = Asked(every(seconds=30), START)
    asked.at(START + 30 * SECOND)

    assert asked.periodic.validate(NONSENSE) is False
    assert asked.periodic.due == []


def test_slots_that_came_between_two_questions_all_fire():
    asked = Asked(every(seconds=1), START)

    assert asked.at(START + 3.5 * SECOND) == [START + n * SECOND for n in (1, 2, 3)]


def test_after_a_stall_the_newest_slots_fire_and_the_rest_are_the_dispatchers():
    asked = Asked(every(seconds=30), START)

    assert asked.at(START + timedelta(hours=1)) == [
        START + timedelta(hours=1) - 30 * SECOND,
        START + timedelta(hours=1),
    ]


def test_a_clock_that_goes_back_fires_nothing_twice():
    asked = Asked(every(seconds=30), START)
    asked.at(START + 60 * SECOND)

    went_back = [asked.at(START + seconds * SECOND) for seconds in (1, 30, 59, 60)]

    assert went_back == [[], [], [], []]
    assert asked.at(START + 90 * SECOND) == [START + 90 * SECOND]


def test_a_clock_that_goes_back_is_never_told_to_wake_in_the_past():
    asked = Asked(every(seconds=30), START)
    asked.at(START + 60 * SECOND)

    asked.clock.now = START

    assert asked.periodic.next_valid_date(NONSENSE) > START


def test_a_slot_that_was_not_asked_about_yet_is_woken_for_at_once():
    asked = Asked(every(seconds=30), START)

    asked.clock.now = START + 30 * SECOND

    assert asked.periodic.next_valid_date(NONSENSE) == asked.clock.now + SHORTEST_WAIT


def test_the_next_date_is_the_next_slot():
    asked = Asked(cron("30 3 * * *", tz="Europe/London"), START)

    assert asked.periodic.next_valid_date(NONSENSE) == datetime(2026, 3, 2, 3, 30, tzinfo=UTC)


def test_it_is_written_as_its_schedule():
    assert str(PeriodicSchedule(every(seconds=30))) == "every 30s"


def test_the_first_question_is_told_once():
    told: list[str] = []
    clock = FrozenClock()
    schedule = PeriodicSchedule(every(seconds=30), clock, on_first_question=lambda: told.append("asked"))

    assert told == []
    schedule.validate(clock.now)
    clock.advance(seconds=31)
    schedule.validate(clock.now)

    assert told == ["asked"]


@pytest.mark.parametrize(
    ("expression", "day", "expected"),
    [
        # Clocks go forward at 01:00 UTC: 01:30 is skipped, and runs right after the gap.
        ("30 1 * * *", datetime(2026, 3, 29, tzinfo=LONDON), [datetime(2026, 3, 29, 1, tzinfo=UTC)]),
        ("0 3 * * *", datetime(2026, 3, 29, tzinfo=LONDON), [datetime(2026, 3, 29, 2, tzinfo=UTC)]),
        # Clocks go back at 01:00 UTC: 01:30 occurs twice, and the job runs the first time.
        ("30 1 * * *", datetime(2026, 10, 25, tzinfo=LONDON), [datetime(2026, 10, 25, 0, 30, tzinfo=UTC)]),
        (
            "30 * * * *",
            datetime(2026, 10, 25, tzinfo=LONDON),
            [datetime(2026, 10, 25, 0, 30, tzinfo=UTC) + n * timedelta(hours=1) for n in range(-1, 24)],
        ),
    ],
)
def test_a_day_on_which_clocks_change_fires_as_the_schedule_says(expression, day, expected):
    asked = Asked(cron(expression, tz="Europe/London"), day)

    assert asked.run_until(day + timedelta(days=1) - SECOND) == expected


SCHEDULES = [
    every(seconds=1),
    every(seconds=7),
    every(seconds=30),
    cron("* * * * *"),
    cron("*/5 * * * *", tz="America/New_York"),
    cron("30 1 * * *", tz="Europe/London"),
]
#: Times near clock changes in London and New York, and other times.
STARTS = [
    START,
    datetime(2026, 3, 29, 0, 58, 30, tzinfo=UTC),
    datetime(2026, 10, 25, 0, 29, tzinfo=UTC),
    datetime(2026, 11, 1, 5, 59, 59, 999_999, tzinfo=UTC),
]


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULES),
    start=st.sampled_from(STARTS),
    waits=st.lists(st.timedeltas(min_value=timedelta(0), max_value=MOST_AT_ONCE), max_size=30),
)
def test_each_slot_fires_once_whatever_the_rhythm_of_the_questions(schedule, start, waits):
    asked = Asked(schedule, start)

    for wait in waits:
        asked.at(asked.clock.now + wait)

    assert asked.fired == list(schedule.between(start, asked.clock.now))


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULES),
    start=st.sampled_from(STARTS),
    jumps=st.lists(st.timedeltas(min_value=timedelta(minutes=-10), max_value=timedelta(minutes=10)), max_size=30),
)
def test_a_clock_that_jumps_fires_no_slot_twice_none_early_and_wakes_in_no_past(schedule, start, jumps):
    asked = Asked(schedule, start)
    newest = start

    for jump in jumps:
        due = asked.at(asked.clock.now + jump)
        assert all(slot <= asked.clock.now for slot in due)
        assert due == [s for s in schedule.between(newest, asked.clock.now) if s > asked.clock.now - MOST_AT_ONCE]
        assert asked.periodic.next_valid_date(NONSENSE) >= asked.clock.now + SHORTEST_WAIT
        newest = max(newest, asked.clock.now)

    assert asked.fired == sorted(set(asked.fired))


@hypothesis_settings(max_examples=50, deadline=None)
@given(schedule=st.sampled_from(SCHEDULES), start=st.sampled_from(STARTS))
def test_a_loop_that_wakes_when_it_is_told_fires_every_slot_once(schedule, start):
    asked = Asked(schedule, start)
    end = start + timedelta(minutes=3)

    asked.run_until(end)

    assert asked.fired == list(schedule.between(start, end))
