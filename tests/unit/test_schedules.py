"""Slots of ``every`` and ``cron``: their times, the days on which clocks change, and refused schedules."""

import pickle
import timeit
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DeclarationError
from core.jobs.cron_dialect import NAMED_EXPRESSIONS
from core.jobs.schedules import Cron, Every, Schedule, cron, every

LONDON, NEW_YORK, LORD_HOWE, KOLKATA = "Europe/London", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"

#: For each time zone an instant at which its clocks change. In Kolkata they never change.
TRANSITIONS = [
    (LONDON, datetime(2026, 3, 29, 1, tzinfo=UTC)),
    (LONDON, datetime(2026, 10, 25, 1, tzinfo=UTC)),
    (NEW_YORK, datetime(2026, 3, 8, 7, tzinfo=UTC)),
    (NEW_YORK, datetime(2026, 11, 1, 6, tzinfo=UTC)),
    (LORD_HOWE, datetime(2026, 4, 4, 15, tzinfo=UTC)),
    (LORD_HOWE, datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    ("America/Santiago", datetime(2026, 4, 5, 3, tzinfo=UTC)),  # from midnight back to 23:00
    ("America/Santiago", datetime(2026, 9, 6, 4, tzinfo=UTC)),  # there is no midnight
    ("America/Nuuk", datetime(2026, 3, 29, 1, tzinfo=UTC)),  # from 23:00 to the next day
    ("Antarctica/Troll", datetime(2026, 10, 25, 1, tzinfo=UTC)),  # two hours back
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),  # 30 December does not exist
    (KOLKATA, datetime(2026, 3, 29, 1, tzinfo=UTC)),
]

FIXED = ["0 1 * * *", "30 1 * * *", "15 2 * * *", "0,30 1-3 * * *", "30 1,2 * * *", "0-59 1,2 * * *", "30 0,23 * * *"]
WILDCARD = ["* * * * *", "*/30 * * * *", "0 * * * *", "45 * * * *", "*/7 3 * * *", "*/15 0-2 * * *", "0 */2 * * *"]
RARE = ["*/30 0 * * 0", "0 0 29 2 *", "30 2 29-31 3 */7", "59 23 28-31 * *", "0 0 13 * 5", "@weekly", "@yearly"]
MINUTE, DAY, MICROSECOND = timedelta(minutes=1), timedelta(days=1), timedelta(microseconds=1)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def year_of(schedule: Schedule, year: int, tz: str) -> list[datetime]:
    """Return the slots of one local year, as local times."""
    zone = ZoneInfo(tz)
    start, end = datetime(year, 1, 1, tzinfo=zone), datetime(year + 1, 1, 1, tzinfo=zone)
    return [slot.astimezone(zone) for slot in schedule.between(start - MICROSECOND, end - MICROSECOND)]


# The reference: checks each minute, without CronSim and without calculations with UTC offsets.


def matches(field: str, value: int) -> bool:
    if "," in field:
        return any(matches(part, value) for part in field.split(","))
    span, _, step = field.partition("/")
    low, _, high = ("0-99" if span == "*" else span).partition("-")
    return int(low) <= value <= int(high or low) and (value - int(low)) % int(step or 1) == 0


def is_met(expression: str, wall: datetime) -> bool:
    minute, hour, *_ = expression.split()
    return matches(minute, wall.minute) and matches(hour, wall.hour)


@cache
def minutes_around(tz: str, transition: datetime) -> list[tuple[datetime, datetime]]:
    """Return each minute of two days before and after, with its local time."""
    instants = [transition + n * MINUTE for n in range(-2 * 1440, 2 * 1440)]
    return [(instant, instant.astimezone(ZoneInfo(tz)).replace(tzinfo=None, fold=0)) for instant in instants]


def reference(expression: str, tz: str, transition: datetime) -> list[datetime]:
    """Return the slots around a clock change, by checking each minute."""
    minutes = minutes_around(tz, transition)
    if expression in WILDCARD:
        return [instant for instant, wall in minutes if is_met(expression, wall)]
    slots = []
    highest = minutes[0][1] - MINUTE
    for instant, wall in minutes:
        passed = [highest + n * MINUTE for n in range(1, (wall - highest) // MINUTE + 1)]  # no slot in a second pass
        if any(is_met(expression, each) for each in passed):
            slots.append(instant)
        highest = max(highest, wall)
    return slots


@pytest.mark.parametrize(("tz", "transition"), TRANSITIONS)
@pytest.mark.parametrize("expression", FIXED + WILDCARD)
def test_around_transitions_every_answer_is_the_reference_s(expression: str, tz: str, transition: datetime) -> None:
    schedule, expected = cron(expression, tz=tz), reference(expression, tz, transition)

    assert list(schedule.between(transition - 2 * DAY - MICROSECOND, expected[-1])) == expected
    for instant in instants_to_ask(transition, expected):
        place = bisect_right(expected, instant)
        assert schedule.next_after(instant) == expected[place], instant
        assert schedule.latest_at(instant) == expected[place - 1], instant


def instants_to_ask(transition: datetime, slots: list[datetime]) -> Iterator[datetime]:
    yield from (transition + n * timedelta(minutes=15) for n in range(-14, 15))
    near = [slot for slot in slots if abs(slot - transition) <= timedelta(hours=2)]
    for instant in [transition, *near[:: max(1, len(near) // 12)]]:
        yield from (instant - MICROSECOND, instant, instant + MICROSECOND)


near_transitions = st.builds(
    lambda transition, offset: transition[1] + offset,
    st.sampled_from(TRANSITIONS),
    st.timedeltas(-DAY, DAY),
)
instants = near_transitions | st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
schedules = st.one_of(
    st.builds(
        lambda expression, transition: cron(expression, tz=transition[0]),
        st.sampled_from(FIXED + WILDCARD + RARE),
        st.sampled_from(TRANSITIONS),
    ),
    st.integers(1, 366 * 86400).map(lambda seconds: every(seconds=seconds)),
)


@settings(max_examples=400, deadline=None)
@given(schedules, instants)
def test_the_methods_agree_with_one_another(schedule: Schedule, instant: datetime) -> None:
    latest, following = schedule.latest_at(instant), schedule.next_after(instant)
    assert latest <= instant < following
    assert schedule.next_after(latest) == following
    assert schedule.latest_at(latest) == latest
    assert schedule.latest_at(following - MICROSECOND) == latest
    assert list(schedule.between(latest - MICROSECOND, following)) == [latest, following]
    assert list(schedule.between(latest, following - MICROSECOND)) == []


@settings(max_examples=200, deadline=None)
@given(schedules, instants)
def test_between_is_next_after_repeated(schedule: Schedule, instant: datetime) -> None:
    slots = [schedule.next_after(instant)]
    for _ in range(9):
        slots.append(schedule.next_after(slots[-1]))

    assert list(schedule.between(instant, slots[-1])) == slots
    assert all(earlier < later for earlier, later in pairwise(slots))
    assert all(slot.tzinfo is UTC for slot in [*slots, schedule.latest_at(instant)])
    assert schedule.latest_at(slots[-1] + MICROSECOND) == slots[-1]


@pytest.mark.parametrize("tz", [LONDON, NEW_YORK, LORD_HOWE, KOLKATA])
@pytest.mark.parametrize("time", ["30 0", "0 1", "30 1", "0 2", "30 2", "0 3"])
def test_a_daily_job_runs_once_on_every_day_of_the_year(time: str, tz: str) -> None:
    days = [slot.date() for slot in year_of(cron(f"{time} * * *", tz=tz), 2026, tz)]
    assert days == [date(2026, 1, 1) + n * DAY for n in range(365)]


def test_three_in_the_morning_is_three_on_both_odd_days_of_every_year() -> None:
    for year in range(2020, 2041):
        assert {slot.hour for slot in year_of(cron("0 3 * * *", tz=LONDON), year, LONDON)} == {3}
    spring, autumn = utc(2026, 3, 29), utc(2026, 10, 25)
    assert cron("0 3 * * *", tz=LONDON).next_after(spring) == utc(2026, 3, 29, 2)
    assert cron("0 3 * * *", tz=LONDON).next_after(autumn) == utc(2026, 10, 25, 3)


def test_a_time_that_is_skipped_runs_right_after_the_gap() -> None:
    assert cron("30 1 * * *", tz=LONDON).next_after(utc(2026, 3, 29)) == utc(2026, 3, 29, 1)
    assert cron("15 2 * * *", tz=LORD_HOWE).next_after(utc(2026, 10, 3, 15)) == utc(2026, 10, 3, 15, 30)


def test_times_that_end_up_together_run_once() -> None:
    day = list(cron("0,30 1,2 * * *", tz=LONDON).between(utc(2026, 3, 29), utc(2026, 3, 29, 12)))
    assert day == [utc(2026, 3, 29, 1), utc(2026, 3, 29, 1, 30)]


def test_a_time_that_comes_twice_runs_the_first_time() -> None:
    schedule = cron("30 1 * * *", tz=LONDON)
    assert list(schedule.between(utc(2026, 10, 25), utc(2026, 10, 26))) == [utc(2026, 10, 25, 0, 30)]
    second_pass = utc(2026, 10, 25, 1, 10)
    assert schedule.next_after(second_pass) == utc(2026, 10, 26, 1, 30)
    assert schedule.latest_at(second_pass) == utc(2026, 10, 25, 0, 30)


@pytest.mark.parametrize(("tz", "shorter", "longer"), [(LONDON, 23, 25), (NEW_YORK, 23, 25)])
def test_an_hourly_job_runs_as_often_as_the_day_has_hours(tz: str, shorter: int, longer: int) -> None:
    slots = year_of(cron("0 * * * *", tz=tz), 2026, tz)
    a_day = Counter(Counter(slot.date() for slot in slots).values())
    assert a_day == {24: 363, shorter: 1, longer: 1}
    assert {later.astimezone(UTC) - earlier.astimezone(UTC) for earlier, later in pairwise(slots)} == {
        timedelta(hours=1)
    }


@pytest.mark.parametrize(("tz", "transition"), TRANSITIONS)
def test_every_half_hour_stays_every_half_hour(tz: str, transition: datetime) -> None:
    slots = list(cron("*/30 * * * *", tz=tz).between(transition - 2 * DAY, transition + 2 * DAY))
    assert len(slots) == 192
    assert {later - earlier for earlier, later in pairwise(slots)} == {timedelta(minutes=30)}


@pytest.mark.parametrize("expression", ["0 0 * * 0", "0 0 * * 7", "0 0 * * sun", "0 0 * * SUN", "@weekly"])
def test_sunday_is_sunday(expression: str) -> None:
    slots = year_of(cron(expression, tz=LONDON), 2026, LONDON)
    assert len(slots) == 52
    assert {slot.isoweekday() for slot in slots} == {7}


@pytest.mark.parametrize(
    ("expression", "count"),
    [("@hourly", 8760), ("@daily", 365), ("@midnight", 365), ("@weekly", 52), ("@monthly", 12), ("@yearly", 1)],
)
def test_named_expressions(expression: str, count: int) -> None:
    assert len(year_of(cron(expression), 2026, "UTC")) == count
    assert (
        cron("@annually").next_after(utc(2026, 5, 1)) == cron("@yearly").next_after(utc(2026, 5, 1)) == utc(2027, 1, 1)
    )


def test_the_year_turns() -> None:
    schedule = cron("0 0 * * *", tz=KOLKATA)
    assert schedule.next_after(utc(2026, 12, 31, 18)) == utc(2026, 12, 31, 18, 30)
    assert schedule.latest_at(utc(2027, 1, 1)) == utc(2026, 12, 31, 18, 30)
    assert cron("59 23 31 12 *").next_after(utc(2026, 12, 31, 23, 59)) == utc(2027, 12, 31, 23, 59)


def test_a_leap_day_is_found_years_away_in_both_directions() -> None:
    schedule = cron("0 0 29 2 *")
    assert schedule.next_after(utc(2096, 2, 29)) == utc(2104, 2, 29)
    assert schedule.latest_at(utc(2104, 2, 28)) == utc(2096, 2, 29)
    leap_sunday = cron("0 0 */28 2 7")  # 1 or 29 February, if it is a Sunday
    assert leap_sunday.latest_at(utc(2032, 3, 1)) == utc(2032, 2, 29)
    assert cron("0 0 29 2 */7").next_after(utc(2088, 3, 1)) == utc(2128, 2, 29)


def test_microseconds_do_not_hide_a_slot() -> None:
    slot = utc(2026, 6, 1, 3)
    for schedule in (cron("0 3 * * *"), every(hours=1)):
        assert schedule.latest_at(slot + MICROSECOND) == slot
        assert schedule.next_after(slot - MICROSECOND) == slot


def test_any_zone_may_ask() -> None:
    in_new_york = datetime(2026, 6, 1, 12, tzinfo=ZoneInfo(NEW_YORK))
    assert cron("0 * * * *").next_after(in_new_york) == utc(2026, 6, 1, 17)
    assert every(hours=1).next_after(in_new_york) == utc(2026, 6, 1, 17)


@pytest.mark.parametrize("schedule", [every(hours=1), cron("0 * * * *")])
def test_naive_datetimes_are_refused_at_once(schedule: Schedule) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    for ask in (schedule.next_after, schedule.latest_at):
        with pytest.raises(ValueError, match="naive datetime"):
            ask(naive)
    for after, until in ((naive, utc(2026, 1, 1)), (utc(2026, 1, 1), naive)):
        with pytest.raises(ValueError, match="naive datetime"):
            schedule.between(after, until)


def test_every_counts_from_the_epoch() -> None:
    assert every(days=7).next_after(utc(1970, 1, 1)) == utc(1970, 1, 8)
    assert every(seconds=40).latest_at(utc(1969, 12, 31, 23, 59, 59)) == utc(1969, 12, 31, 23, 59, 20)
    slots = list(every(minutes=15).between(utc(2026, 1, 1), utc(2026, 1, 1, 1)))
    assert slots == [utc(2026, 1, 1, 0, 15), utc(2026, 1, 1, 0, 30), utc(2026, 1, 1, 0, 45), utc(2026, 1, 1, 1)]


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [
        (every(minutes=1.1), timedelta(seconds=66)),
        (every(hours=1, minutes=30), timedelta(minutes=90)),
        (every(seconds=0.5, minutes=0.025), timedelta(seconds=2)),
        (every(seconds=1), timedelta(seconds=1)),
        (every(days=366), timedelta(days=366)),
    ],
)
def test_the_parts_of_every_add_up(schedule: Every, interval: timedelta) -> None:
    assert schedule.interval == interval


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({}, r"every\(\)"),
        ({"seconds": 0.5}, r"seconds=0\.5"),
        ({"minutes": 1 / 3}, r"minutes=0\.333"),
        ({"seconds": -1}, r"seconds=-1"),
        ({"hours": 2, "minutes": -30}, r"minutes=-30"),
        ({"days": 366, "seconds": 1}, r"seconds=1, days=366"),
        ({"seconds": True}, r"seconds=True"),
        ({"minutes": "15"}, r"minutes='15'"),
        ({"hours": None}, r"hours=None"),
        ({"seconds": float("nan")}, r"seconds=nan"),
        ({"days": float("inf")}, r"days=inf"),
    ],
)
def test_bad_intervals_are_refused_with_field_and_value(parts: dict[str, float], named: str) -> None:
    with pytest.raises(DeclarationError, match=named + r".*; expected "):
        every(**parts)


@pytest.mark.parametrize("interval", [timedelta(0), timedelta(seconds=-5), timedelta(seconds=1.5), timedelta(days=367)])
def test_bad_intervals_are_refused_by_the_class_too(interval: timedelta) -> None:
    with pytest.raises(DeclarationError, match="bad interval"):
        Every(interval)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "61 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "*/0 * * * *",
        "1,,2 * * * *",
        "-1 * * * *",
        "a * * * *",
        "* * * * " + "1" * 5000,  # more digits than int() accepts
        "0 0 3 * *  *",
        "* * * *",
        "0 0 30 2 *",
        "0 0 31 4,6 *",
        "@reboot",
        None,
        5,
    ],
)
def test_bad_expressions_are_refused_with_the_value(expression: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        cron(expression)
    assert repr(expression) in str(refused.value)
    assert "five fields" in str(refused.value)


def test_a_time_that_the_zone_always_skips_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"never comes in 'America/New_York'"):
        cron("* 2 8-14 3 */7", tz=NEW_YORK)
    assert cron("* 2 8-14 3 */7", tz=LONDON)


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(DeclarationError, match=r"did you mean '@daily'\?$"):
        cron("@dayly")


@pytest.mark.parametrize(
    "tz",
    [
        "",
        "Europe/Londn",
        "europe/london",
        "../etc/passwd",
        "/etc/passwd",
        "Europe",
        "a\0b",
        "localtime",
        "x" * 9000,
        None,
    ],
)
def test_unknown_zones_are_refused_with_the_value(tz: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        cron("0 3 * * *", tz=tz)
    assert f"unknown time zone {tz!r}; expected" in str(refused.value)


def test_a_misspelt_zone_gets_a_suggestion() -> None:
    with pytest.raises(DeclarationError, match=r"did you mean 'Europe/London'\?$"):
        cron("0 3 * * *", tz="Europe/Londn")


@pytest.mark.parametrize(
    ("schedule", "text", "tz"),
    [
        (every(seconds=30), "every 30s", "UTC"),
        (every(seconds=90), "every 90s", "UTC"),
        (every(seconds=900), "every 15m", "UTC"),
        (every(minutes=60), "every 1h", "UTC"),
        (every(hours=36), "every 36h", "UTC"),
        (every(hours=24), "every 1d", "UTC"),
        (cron(" 0  3 * * * ", tz=LONDON), "0 3 * * * Europe/London", LONDON),
        (cron("@daily"), "@daily UTC", "UTC"),
    ],
)
def test_schedules_read_well(schedule: Schedule, text: str, tz: str) -> None:
    assert str(schedule) == text
    assert schedule.timezone == tz


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (every(minutes=1), every(seconds=60), every(seconds=61)),
        (cron("0 3 * * *", tz=LONDON), cron("0  3 * * *", tz=LONDON), cron("0 3 * * *")),
    ],
)
def test_schedules_are_values(one: Schedule, same: Schedule, other: Schedule) -> None:
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert not hasattr(one, "__dict__")
    copy = pickle.loads(pickle.dumps(one))  # noqa: S301
    assert copy == one
    assert copy.next_after(utc(2026, 1, 1)) == one.next_after(utc(2026, 1, 1))
    with pytest.raises(FrozenInstanceError):
        setattr(one, fields(one)[0].name, None)  # type: ignore[arg-type]


def test_every_named_expression_is_accepted() -> None:
    assert all(isinstance(cron(name), Cron) for name in NAMED_EXPRESSIONS)


def test_next_after_a_long_pause_of_the_schedule_takes_no_longer() -> None:
    schedule, friday = cron("*/5 9-17 * * 1-5", tz=LONDON), utc(2026, 3, 27, 12)

    def seconds(instant: datetime) -> float:
        return min(timeit.repeat(lambda: schedule.next_after(instant), number=20, repeat=5))

    assert seconds(friday + timedelta(hours=30)) < 20 * seconds(friday)


def test_between_is_lazy() -> None:
    slots = every(seconds=1).between(utc(2000, 1, 1), utc(9000, 1, 1))
    assert list(islice(slots, 2)) == [utc(2000, 1, 1, 0, 0, 1), utc(2000, 1, 1, 0, 0, 2)]
