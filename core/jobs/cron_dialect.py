"""The dialect of cron expressions: Rota accepts exactly the expressions that both Debian's cron and cronie accept.

CronSim accepts more (``L``, ``LW``, ``5#2``, ``5/10``), reads ``30-30/18`` as 30 and 48, and refuses ``sat-sun``. So
this module replaces each range by a list of its values, and CronSim is given only lists and ``*``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import DeclarationError, suggestion

NAMED_EXPRESSIONS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
EXPECTED_FIELDS = (
    "five fields that match some date: minute 0-59, hour 0-23, day of month 1-31, month 1-12, "
    f"day of week 0-7 (0 and 7 are Sunday); or one of {', '.join(NAMED_EXPRESSIONS)}"
)
SUNDAY, SUNDAY_AT_THE_END = 0, 7
NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Field:
    """One of the five fields of a cron expression, with the values that it may have."""

    title: str
    low: int
    high: int
    #: The names of the values, beginning with the name of ``low``.
    names: Sequence[str] = ()

    def listed(self, text: str) -> str:
        """Return ``text`` with each range replaced by a list of its values. Raises ValueError, whose text says what is
        wrong.
        """
        return ",".join(self._term(term) for term in text.split(","))

    def _term(self, term: str) -> str:
        span, slash, step = term.partition("/")
        every = self._step(step, term) if slash else 1
        if span == "*":
            return term
        first, dash, last = span.partition("-")
        low = self._value(first)
        if not dash and slash:
            raise ValueError(
                f"{self.title} {term!r}: a step must follow * or a range, such as {low}-{self.high}/{every}"
            )
        return ",".join(map(str, range(low, self._end(last, low, span) + 1, every))) if dash else str(low)

    def _end(self, last: str, low: int, span: str) -> int:
        high = self._value(last)
        if high == SUNDAY < low and self is DAY_OF_WEEK:
            high = SUNDAY_AT_THE_END
        if high < low:
            raise ValueError(f"{self.title} {span!r}: a range must begin with its smaller value; write two ranges")
        return high

    def _value(self, text: str) -> int:
        if text.lower() in self.names:
            return self.low + self.names.index(text.lower())
        if NUMBER.fullmatch(text) and self.low <= int(text) <= self.high:
            return int(text)
        named = f" or {self.names[0]}-{self.names[-1]}" if self.names else ""
        raise ValueError(f"{self.title} {text[:20]!r} is not one of {self.low}-{self.high}{named}")

    def _step(self, text: str, term: str) -> int:
        if NUMBER.fullmatch(text) and int(text):
            return int(text)
        raise ValueError(f"{self.title} {term[:20]!r}: a step must be a number above 0")


DAY_OF_WEEK = Field("day of week", 0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat"))
FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31),
    Field("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    DAY_OF_WEEK,
)


def listed(expression: str) -> str:
    """Return the five fields of ``expression``, with ranges as lists.

    Raises DeclarationError if cron would not accept the expression.
    """
    if not isinstance(expression, str):
        raise DeclarationError(f"bad cron expression {expression!r}; expected a string of {EXPECTED_FIELDS}")
    name = expression.strip()
    fields = NAMED_EXPRESSIONS.get(name, name).split()
    if len(fields) != len(FIELDS):
        hint = suggestion(name, NAMED_EXPRESSIONS) if name.startswith("@") else ""
        raise DeclarationError(f"bad cron expression {expression!r}; expected {EXPECTED_FIELDS}{hint}")
    try:
        return " ".join(field.listed(text) for field, text in zip(FIELDS, fields, strict=True))
    except ValueError as error:
        raise DeclarationError(f"bad cron expression {expression!r}: {error}; expected {EXPECTED_FIELDS}") from error
