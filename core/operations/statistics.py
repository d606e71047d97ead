"""Statistics of a job: how many runs ended how, and how long they took, in steps of time."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row

from core.errors import BadTime
from core.jobs.registry import Registry
from core.ledger import history, run_counts
from core.ledger.models import State
from core.ledger.operations import WITHDRAWN
from core.ledger.run_counts import NEVER_STARTED, middle_ms
from core.operations import times
from core.operations.json_shape import Instant, Shape
from core.operations.runs import refuse_unknown

#: The possible steps. The shortest step that gives at most ``MOST_ITEMS`` items is taken.
STEPS = [timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15), timedelta(hours=1), timedelta(hours=6),
         timedelta(days=1), timedelta(days=7)]  # fmt: skip
MOST_ITEMS = 100
BY_DEFAULT = "24h"


class Took(Shape):
    """How long the last attempts of runs took, in seconds. The percentiles are exact to about a fifth."""

    mean: float
    p50: float
    p95: float
    p99: float


class Ended(Shape):
    """How many runs ended how. ``withdrawn`` runs were dropped or cancelled."""

    succeeded: int
    dead: int
    skipped: int
    missed: int
    orphaned: int
    withdrawn: int
    #: How long the runs took that succeeded or are dead; null if there are none.
    took_seconds: Took | None


class Step(Ended):
    """The runs that ended in one step of time, which begins at ``at``."""

    at: Instant


class Statistics(Shape):
    """The runs of a job that ended in a span. Steps in which no run ended are left out."""

    job: str
    since: Instant
    until: Instant
    step_seconds: int
    #: Runs that ended after this time are not counted yet; null if nothing has been counted.
    counted_until: Instant | None
    total: Ended
    items: list[Step]


def of_job(
    connection: Connection, registry: Registry, job: str, *, since: str | None = None, until: str | None = None
) -> Statistics:
    """Return the statistics of a job. Raises UnknownJob or BadTime."""
    refuse_unknown(connection, registry, job)
    now = history.now(connection)
    begin, end = times.past(since or BY_DEFAULT, now, "since"), times.past(until, now, "until") or now
    assert begin is not None
    times.within(begin, "since")
    if begin >= end:
        raise BadTime("the span must end after its start", "since")
    step = step_of(begin, end, now)
    begin = datetime.fromtimestamp(begin.timestamp() // step.total_seconds() * step.total_seconds(), begin.tzinfo)
    rows = run_counts.of_job(connection, job, begin, end, step)
    items = [Step(at=at, **ended(list(found))) for at, found in groupby(rows, key=lambda row: row.at)]
    return Statistics(
        job=job,
        since=begin,
        until=end,
        step_seconds=round(step.total_seconds()),
        counted_until=run_counts.counted_until(connection),
        total=Ended(**ended(rows)),
        items=items,
    )


def step_of(begin: datetime, end: datetime, now: datetime) -> timedelta:
    """Return the step of a span. Old runs are counted by the hour."""
    least = timedelta(hours=1) if begin < now - run_counts.BY_MINUTE else STEPS[0]
    return next((step for step in STEPS if step >= least and (end - begin) / step <= MOST_ITEMS), STEPS[-1])


def ended(rows: Sequence[Row[Any]]) -> dict[str, Any]:
    """Return the values of an ``Ended`` for these counts."""
    by_outcome: Counter[str] = Counter()
    for row in rows:
        by_outcome["withdrawn" if row.outcome in WITHDRAWN else row.outcome] += row.runs
    outcomes = (State.SUCCEEDED, State.DEAD, State.SKIPPED, State.MISSED, State.ORPHANED)
    counts = {str(name): by_outcome[name] for name in (*outcomes, "withdrawn")}
    return {**counts, "took_seconds": took(row for row in rows if row.took != NEVER_STARTED)}


def took(rows: Iterable[Row[Any]]) -> Took | None:
    """Return how long runs took, from their counts by class of duration."""
    classes: Counter[int] = Counter()
    sum_ms = 0
    for row in rows:
        classes[row.took] += row.runs
        sum_ms += row.took_ms
    if not classes:
        return None
    p50, p95, p99 = (percentile(classes, share) for share in (0.5, 0.95, 0.99))
    return Took(mean=sum_ms / classes.total() / 1000, p50=p50, p95=p95, p99=p99)


def percentile(classes: Counter[int], share: float) -> float:
    """Return the duration, in seconds, that ``share`` of the runs did not exceed."""
    left = share * classes.total()
    for number in sorted(classes):
        left -= classes[number]
        if left <= 0:
            break
    return round(middle_ms(number) / 1000, 6)
