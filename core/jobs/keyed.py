"""``Keyed``: the option of a job that has schedules made at run time, one for each key."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

from sqlalchemy.orm import Session

from core.jobs import grid
from core.jobs.schedules import LONGEST_INTERVAL, SECOND, SHORTEST_INTERVAL, Cron, Every, Schedule

#: With an interval shorter than this, late slots are skipped by default, since the next slot comes soon.
SHORT_INTERVAL = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class KeySchedule:
    """The schedule that a key must have, for ``sync_schedules`` and ``register_schedules``; see ``schedule``."""

    key: str
    every: timedelta | None = None
    cron: Cron | None = None
    spread: timedelta = timedelta(0)
    args: Mapping[str, Any] | None = None
    priority: int | None = None


Keep = Literal["all", "failures"]
#: A function that returns the schedules that the keys of a job must have. It must not end the session's transaction.
WantedSchedules = Callable[[Session], Iterable[KeySchedule]]


@dataclass(frozen=True, slots=True)
class Keyed:
    """Lets each key of the job have a schedule made at run time, by ``schedule`` and ``sync_schedules``.

    An interval is ``least`` to ``most``, in whole seconds. The slots of a cron expression are at least ``least`` apart.
    ``default`` is the schedule of a key that is given no other. When ``backoff_after`` runs of a key have died in a
    row, the key backs off: its interval is doubled. Each further run that dies doubles the interval again, up to
    ``backoff_longest``. Of a cron expression, only the first slot in each such interval comes due. After a run that
    succeeds, the key has its usual slots again.

    With ``keep="failures"``, a run of a slot is deleted after an hour if it succeeded at its first attempt and has no
    result. Deleted runs are counted, and ``rota why`` still reports them.
    """

    least: timedelta = timedelta(seconds=10)
    most: timedelta = timedelta(days=1)
    default: Schedule | None = None
    backoff_after: int | None = None
    backoff_longest: timedelta = timedelta(hours=1)
    keep: Keep = "all"

    @property
    def is_frequent(self) -> bool:
        """Whether the default interval or, without a default, ``least`` is short."""
        if isinstance(self.default, Cron):
            return False
        return (self.default.interval if isinstance(self.default, Every) else self.least) < SHORT_INTERVAL

    def refusal(self, schedule: Schedule) -> str:
        """Return why a key may not have this schedule, or an empty text if it may."""
        if isinstance(schedule, Every):
            is_allowed = self.least <= schedule.interval <= self.most
            return "" if is_allowed else f"the interval {schedule.interval} must be {self.least} to {self.most}"
        if min(grid.distances(schedule), default=timedelta.max) < self.least:
            return f"the slots of {str(schedule)!r} must be at least {self.least} apart"
        return ""

    def longest_stretch(self, schedule: Every | Cron) -> int:
        """Return how many times a back-off may double the time between two slots of this schedule."""
        return grid.longest_stretch(schedule, self.backoff_longest) if self.backoff_after is not None else 0


def keyed_problems(keyed: object) -> list[str]:
    """Return the problems with the option ``keyed``."""
    if keyed is None:
        return []
    if not isinstance(keyed, Keyed):
        return [f"keyed={keyed!r} must be Keyed(least, most, default)"]
    problems = [
        f"keyed: {name}={span!r} must be whole seconds, {SHORTEST_INTERVAL} to {LONGEST_INTERVAL.days} days"
        for name, span in (("least", keyed.least), ("most", keyed.most), ("backoff_longest", keyed.backoff_longest))
        if not is_interval(span)
    ]
    after: object = keyed.backoff_after
    if after is not None and (isinstance(after, bool) or not isinstance(after, int) or after < 1):
        problems.append(f"keyed: backoff_after={after!r} must be a whole number, 1 or more, or None")
    if keyed.keep not in get_args(Keep):
        problems.append(f"keyed: keep={keyed.keep!r} must be one of {', '.join(map(repr, get_args(Keep)))}")
    default: object = keyed.default
    if default is not None and not isinstance(default, Schedule):
        problems.append(f"keyed: default={default!r} must be every(…) or cron(…)")
    return problems or contradictions(keyed)


def contradictions(keyed: Keyed) -> list[str]:
    """Return the contradictions between the parts of the option ``keyed``."""
    if keyed.least > keyed.most:
        return [f"keyed: least={keyed.least} must not be longer than most={keyed.most}"]
    refusal = keyed.refusal(keyed.default) if keyed.default is not None else ""
    return [f"keyed: default={str(keyed.default)!r}: {refusal}"] if refusal else []


def is_interval(span: object) -> bool:
    """Return whether a schedule may have this interval."""
    return isinstance(span, timedelta) and not span % SECOND and SHORTEST_INTERVAL <= span <= LONGEST_INTERVAL
