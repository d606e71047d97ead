"""The adapter that periodiq's loop talks to.

periodiq asks the object in ``actor.options["periodic"]`` three things: ``validate(now)``, ``next_valid_date(now)`` and
its ``str``; and calls the actor's ``send_with_options(scheduled_at=…)`` for those that said yes. Ours answers from the
registry's schedule, to the second and in its time zone, and reads ``validate`` as "has a slot come since I was last
asked". periodiq's own idea of now, rounded to a second, is not used.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from core.clock import Clock, system_clock
from core.jobs.schedules import Schedule, first_after, slots_between

#: periodiq recurses when it is told to wake in the past (its Scheduler.schedule), so it is told to wake a little later.
SHORTEST_WAIT = timedelta(milliseconds=20)
#: After a stall the newest slots are sent; the dispatcher accounts for the rest.
MOST_AT_ONCE = timedelta(seconds=60)


def nothing() -> None:
    """Do nothing."""


class PeriodicSchedule:
    """One job's schedule, as periodiq sees it."""

    def __init__(
        self, schedule: Schedule, clock: Clock = system_clock, *, on_first_question: Callable[[], None] = nothing
    ) -> None:
        self._schedule = schedule
        self._clock = clock
        self._on_first_question = on_first_question
        self._asked_at: datetime | None = None
        #: The first slot that has not come when this was last asked; computing it takes longer than anything else here.
        self._next: datetime | None = None
        #: The slots that have come since the last question but one.
        self.due: list[datetime] = []

    def __str__(self) -> str:
        return str(self._schedule)

    def validate(self, _now: datetime) -> bool:
        """Whether a slot has come since this was last asked; the first time, no."""
        now = self._clock()
        if self._asked_at is None:
            self._asked_at = now
            self._on_first_question()
        if self._next is None or self._next <= now:
            since = max(self._asked_at, now - MOST_AT_ONCE)
            self.due = slots_between(self._schedule, since, now, first=self._next)
            self._next = first_after(self._schedule, self.due[-1]) if self.due else None
        else:
            self.due = []
        self._asked_at = max(self._asked_at, now)
        return bool(self.due)

    def take(self) -> list[datetime]:
        """The slots that are due, once."""
        due, self.due = self.due, []
        return due

    def next_valid_date(self, _now: datetime) -> datetime:
        """When to ask again."""
        now = self._clock()
        asked_at = self._asked_at or now
        if self._next is None or self._next <= asked_at:
            self._next = self._schedule.next_after(asked_at)
        return max(self._next, now + SHORTEST_WAIT)
