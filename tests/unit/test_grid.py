"""The slots of a schedule made at run time that come due while its key backs off."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.jobs.grid import grid, longest_stretch, step, stretch_of
from core.jobs.schedules import EPOCH, parse

HOUR, MINUTE, MICROSECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(microseconds=1)
SPECS = [
    "every 10s",
    "every 7m",
    "* * * * * UTC",
    "*/7 * * * * UTC",
    "0,5 * * * * Europe/London",
    "*/5 9-17 * * mon-fri Asia/Kolkata",
    "30 1 * * * Europe/London",
]
#: Times near the clock changes in London in 2026.
INSTANTS = st.datetimes(datetime(2026, 3, 28), datetime(2026, 10, 27), timezones=st.just(UTC))  # noqa: DTZ001


@given(st.sampled_from(SPECS), st.integers(0, 600), st.integers(0, 6), INSTANTS)
def test_the_methods_agree_and_each_slot_is_one_of_the_schedule(spec, phase, stretch, instant):
    due = grid(spec, phase, stretch)
    latest, following = due.latest_at(instant), due.next_after(instant)

    assert latest <= instant < following
    assert due.next_after(latest) == following
    assert due.latest_at(latest) == latest
    assert due.latest_at(following - MICROSECOND) == latest
    assert list(due.between(latest - MICROSECOND, following)) == [latest, following]
    assert all(grid(spec, phase).latest_at(slot) == slot for slot in (latest, following))


@given(st.sampled_from(SPECS), st.integers(1, 6), INSTANTS)
def test_at_most_one_slot_comes_due_in_the_time_that_is_doubled(spec, stretch, instant):
    length = step(parse(spec)) << stretch
    slots = list(grid(spec, 0, stretch).between(instant, instant + 6 * HOUR))
    periods = [(slot - EPOCH) // timedelta(seconds=length) for slot in slots]

    assert len(set(periods)) == len(periods)


@given(st.sampled_from([spec for spec in SPECS if not spec.startswith("every")]), INSTANTS)
def test_each_slot_of_a_cron_expression_comes_due_up_to_a_stretch(spec, instant):
    slots = list(grid(spec, 0).between(instant, instant + 12 * HOUR))
    due = {stretch: set(grid(spec, 0, stretch).between(instant, instant + 12 * HOUR)) for stretch in range(8)}

    for before, slot in pairwise(slots):
        most = stretch_of(before, slot, step(parse(spec)))
        assert [stretch for stretch in due if slot in due[stretch]] == [each for each in due if each <= most]


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ("every 7m", 420),
        ("* * * * * UTC", 60),
        ("*/7 * * * * UTC", 420),  # every 7 minutes, and 4 minutes at the end of each hour
        ("*/5 9-17 * * mon-fri Europe/London", 300),
        ("0 3 * * * Europe/London", 24 * 3600),
        ("0 0 29 2 * UTC", 366 * 24 * 3600),
    ],
)
def test_a_backoff_doubles_the_usual_time_between_two_slots(spec, seconds):
    assert step(parse(spec)) == seconds


@pytest.mark.parametrize(
    ("spec", "stretch"), [("every 10s", 8), ("every 1m", 5), ("every 1h", 0), ("every 1d", 0), ("*/5 * * * * UTC", 3)]
)
def test_a_backoff_is_no_longer_than_its_longest(spec, stretch):
    assert longest_stretch(parse(spec), HOUR) == stretch


def test_a_stretch_beyond_the_longest_interval_raises_nothing():
    assert grid("every 1d", 0, 12).next_after(EPOCH) == EPOCH + timedelta(days=366)
