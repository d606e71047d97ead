"""The adapter between periodiq's loop and the jobs' schedules.

periodiq calls ``validate(now)``, ``next_valid_date(now)`` and ``str`` of the object in ``actor.options["periodic"]``.
If ``validate`` returns true, periodiq calls the actor's ``send_with_options(scheduled_at=…)``. Rota's object uses the
job's schedule, which has seconds and a time zone. Its ``validate`` returns whether a slot has come due since the last
call. Both methods ignore periodiq's ``now``, which is rounded to a second.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from core.clock import Clock, system_clock
from core.jobs.schedules import Schedule, first_after, slots_between

#: periodiq's Scheduler.schedule recurses if the next date is in the past. So the next date is at least this far ahead.
SHORTEST_WAIT = timedelta(milliseconds=20)
#: After a stall, periodiq sends only the slots of this last period. The dispatcher accounts for older slots.
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
        #: The first slot after the last call. It is stored, since computing it is the most expensive step in this
        #: class.
        self._next: datetime | None = None
        #: The slots that have come due and that ``take`` has not returned yet.
        self.due: list[datetime] = []

    def __str__(self) -> str:
        return str(self._schedule)

    def validate(self, _now: datetime) -> bool:
        """Return whether a slot has come due since the last call. The first call returns False."""
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
        """Return the due slots, and clear ``due``."""
        due, self.due = self.due, []
        return due

    def next_valid_date(self, _now: datetime) -> datetime:
        """Return the time at which periodiq must call ``validate`` again."""
        now = self._clock()
        asked_at = self._asked_at or now
        if self._next is None or self._next <= asked_at:
            self._next = self._schedule.next_after(asked_at)
        return max(self._next, now + SHORTEST_WAIT)
