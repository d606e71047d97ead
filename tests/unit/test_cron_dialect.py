"""What ``cron`` takes and means: cronie's documented rules as a table, and as a search minute by minute.

The rules are those of crontab(5) of cronie and Debian: a field is a list of ``*``, values and ranges, the first and the
last with or without a step; a range of days may end on Sunday; where neither day field begins with ``*``, one of the
two is enough; and where clocks change, a job at fixed times runs once, and one with a wildcard follows the wall.
"""

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.errors import DeclarationError
from core.jobs.schedules import cron
from tests.unit.test_schedules import TRANSITIONS, minutes_around

MINUTE = timedelta(minutes=1)
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))

#: Expressions, each with its first slots after Thursday, 1 January 2026, 00:00 UTC.
TABLE = {
    "0 0 * * mon-sun": ["01-02 00:00", "01-03 00:00", "01-04 00:00"],
    "0 12 * * sat-sun": ["01-03 12:00", "01-04 12:00", "01-10 12:00"],
    "0 23 * * fri-sun": ["01-02 23:00", "01-03 23:00", "01-04 23:00", "01-09 23:00"],
    "0 23 * * 5-0": ["01-02 23:00", "01-03 23:00", "01-04 23:00", "01-09 23:00"],
    "0 23 * * 5-7": ["01-02 23:00", "01-03 23:00", "01-04 23:00", "01-09 23:00"],
    "0 23 * * SUN-Tue": ["01-04 23:00", "01-05 23:00", "01-06 23:00", "01-11 23:00"],
    "0 23 * * mon-5/2": ["01-02 23:00", "01-05 23:00", "01-07 23:00"],
    "0 0 * * 0-0": ["01-04 00:00", "01-11 00:00"],
    "0 0 * * */7": ["01-04 00:00", "01-11 00:00"],
    "0 0 * * */2": ["01-03 00:00", "01-04 00:00", "01-06 00:00", "01-08 00:00"],
    "30-30/18 * * * *": ["01-01 00:30", "01-01 01:30"],
    "0 4-4/7 * * *": ["01-01 04:00", "01-02 04:00"],
    "5-59/10 * * * *": ["01-01 00:05", "01-01 00:15"],
    "0-30/20,50 * * * *": ["01-01 00:20", "01-01 00:50", "01-01 01:00"],
    "*/70 * * * *": ["01-01 01:00", "01-01 02:00"],
    "007 05 * * *": ["01-01 05:07", "01-02 05:07"],
    "0 0 1 feb-apr/2 *": ["02-01 00:00", "04-01 00:00"],
    "0 0 1 */5 *": ["06-01 00:00", "11-01 00:00"],
    "0 9 1 * mon": ["01-01 09:00", "01-05 09:00", "01-12 09:00", "01-19 09:00", "01-26 09:00", "02-01 09:00"],
    "0 9 1-7 * */7": ["01-04 09:00", "02-01 09:00", "03-01 09:00"],
    "0 9 */10 * mon": ["05-11 09:00", "06-01 09:00"],
    "0 9 *,5 * mon": ["01-05 09:00", "01-12 09:00"],
    "0 0 13 * fri": ["01-02 00:00", "01-09 00:00", "01-13 00:00", "01-16 00:00"],
}

REFUSED = {
    "5/10 * * * *": "minute '5/10': a step must follow * or a range, such as 5-59/10",
    "0 0 L * *": "day of month 'L' is not one of 1-31",
    "0 0 LW * *": "day of month 'LW' is not one of 1-31",
    "0 0 15W * *": "day of month '15W' is not one of 1-31",
    "0 0 * * 5L": "day of week '5L' is not one of 0-7 or sun-sat",
    "0 0 * * 5#2": "day of week '5#2' is not one of 0-7 or sun-sat",
    "0 0 ? * 1": "day of month '?' is not one of 1-31",
    "0~30 * * * *": "minute '0~30' is not one of 0-59",
    "*-5 * * * *": "minute '*' is not one of 0-59",
    "0 0 * * sunday": "day of week 'sunday' is not one of 0-7 or sun-sat",
    "0 0 * jan-foo *": "month 'foo' is not one of 1-12 or jan-dec",
    "0 0 * * 6-1": "day of week '6-1': a range must begin with its smaller value",
    "22-2 * * * *": "minute '22-2': a range must begin with its smaller value",
    "*/0 * * * *": "minute '*/0': a step must be a number above 0",
    "*/ * * * *": "minute '*/': a step must be a number above 0",
    "*/5/5 * * * *": "minute '*/5/5': a step must be a number above 0",
    "1,,2 * * * *": "minute '' is not one of 0-59",
    "٣ * * * *": "minute '٣' is not one of 0-59",
    "0 0 30 2 *": "has a day of month that none of its months has",
}


@pytest.mark.parametrize("expression", TABLE)
def test_an_expression_means_what_it_means_to_cronie(expression):
    slots = islice(cron(expression).between(datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)), 6)

    assert [f"{slot:%m-%d %H:%M}" for slot in slots][: len(TABLE[expression])] == TABLE[expression]


@pytest.mark.parametrize("expression", REFUSED)
def test_what_cron_does_not_take_is_refused_with_a_sentence(expression):
    with pytest.raises(DeclarationError) as refused:
        cron(expression)

    assert REFUSED[expression] in str(refused.value)


# The reference: the rules above, applied to each minute.


def values(field: str, low: int, high: int, names: tuple[str, ...] = ()) -> set[int]:
    found: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        ends = [str(low), str(high)] if span == "*" else span.split("-")
        first, last = (names.index(end) + low if end in names else int(end) for end in (ends[0], ends[-1]))
        if len(ends) == 2 and names == DAYS and last == 0 and first > 0:
            last = 7
        found.update(range(first, last + 1, int(step or 1)))
    return found


class Rules:
    """An expression, evaluated by cronie's rules."""

    def __init__(self, expression: str) -> None:
        fields = expression.split()
        self.is_wildcard = fields[0][0] == "*" or fields[1][0] == "*"
        self.both_days = fields[2][0] == "*" or fields[4][0] == "*"
        named = ((), (), (), MONTHS, DAYS)
        self.minutes, self.hours, self.days, self.months, weekdays = (
            values(field, *bounds, names) for field, bounds, names in zip(fields, BOUNDS, named, strict=True)
        )
        self.weekdays = {day % 7 for day in weekdays}

    def meet(self, wall: datetime) -> bool:
        days = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return (
            wall.minute in self.minutes
            and wall.hour in self.hours
            and wall.month in self.months
            and (all(days) if self.both_days else any(days))
        )

    def slots(self, minutes: list[tuple[datetime, datetime]]) -> list[datetime]:
        """Return the slots of ``minutes``, which are instants with their local times. Clocks do not change in the first
        minute.
        """
        if self.is_wildcard:
            return [instant for instant, wall in minutes if self.meet(wall)]
        found, highest = [], minutes[0][1] - MINUTE
        for instant, wall in minutes:
            passed = [highest + n * MINUTE for n in range(1, (wall - highest) // MINUTE + 1)]  # none in a second pass
            if any(self.meet(each) for each in passed):
                found.append(instant)
            highest = max(highest, wall)
        return found


@st.composite
def fields(draw: st.DrawFn, low: int, high: int, names: tuple[str, ...] = ()) -> str:
    def written(value: int) -> str:
        return draw(st.sampled_from([str(value), names[value - low]])) if value - low < len(names) else str(value)

    def end(value: int, first: int) -> str:
        is_sunday = names == DAYS and value == 7 and first > 0
        return draw(st.sampled_from(["7", "0", "sun"])) if is_sunday else written(value)

    def term() -> str:
        kind = draw(st.sampled_from(["*", "*", "value", "range"]))
        step = f"/{draw(st.integers(1, high + 3))}" if kind != "value" and draw(st.booleans()) else ""
        first = draw(st.integers(low, high))
        if kind == "range":
            return f"{written(first)}-{end(draw(st.integers(first, high)), first)}{step}"
        return f"*{step}" if kind == "*" else written(first)

    return ",".join(term() for _ in range(draw(st.integers(1, 2))))


expressions = st.tuples(
    *(fields(*bounds, names) for bounds, names in zip(BOUNDS, ((), (), (), MONTHS, DAYS), strict=True))
)


@settings(max_examples=100, deadline=None)
@given(expressions, st.sampled_from(TRANSITIONS))
def test_around_clock_changes_every_slot_is_that_of_the_rules(parts, zone_and_transition):
    (tz, transition), expression = zone_and_transition, " ".join(parts)
    minutes = minutes_around(tz, transition)
    try:
        schedule = cron(expression, tz=tz)
    except DeclarationError as refused:
        assume("never comes" not in str(refused) and "none of its months" not in str(refused))
        raise

    assert list(schedule.between(minutes[0][0] - MINUTE, minutes[-1][0])) == Rules(expression).slots(minutes)
