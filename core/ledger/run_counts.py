"""Counts the runs that have ended, by job, minute, outcome and duration, so that statistics need not read the runs.

Nothing is counted when a run ends. A job of the core counts the minutes that have passed, from the index of finished
runs, and counts each minute again five minutes later. The second count is needed since a run has the time of its end
before its transaction is visible.

A run that a person retries later has ended twice, and both ends are counted. Durations are counted in classes: each
class is longer than the one before by the factor √2.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.orm import Session

from core.ledger.operations import IS_WITHDRAWN

#: Minutes that ended less than this long ago are not counted yet.
SETTLED = timedelta(seconds=10)
#: The newest minutes that have been counted are counted again.
AGAIN = timedelta(minutes=5)
#: One transaction counts about this many runs.
BATCH = 50_000
#: One transaction counts the runs of a span that is at most this long.
LONGEST = timedelta(hours=1)
#: Counts that are older than this are summed up by the hour.
BY_MINUTE = timedelta(days=3)
#: The class of runs that were never started.
NEVER_STARTED = -1
#: The number of classes in which the duration doubles.
PER_DOUBLING = 2

#: The newest minute that has been counted, the first and the last end of a run, and the end of the minutes to count.
BEGIN = text("""
    SELECT (SELECT max(minute) FROM rota_run_counts) AS newest,
           (SELECT finished_at FROM rota_runs WHERE finished_at IS NOT NULL ORDER BY finished_at LIMIT 1) AS first,
           (SELECT finished_at FROM rota_runs WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT 1) AS last,
           date_trunc('minute', statement_timestamp() - CAST(:settled AS interval)) AS until
""")
#: The minute after which about ``:batch`` runs have ended, and the minute of the next run that has ended.
AHEAD = text("""
    SELECT (SELECT date_trunc('minute', finished_at) FROM rota_runs WHERE finished_at >= :since
            ORDER BY finished_at LIMIT 1) AS first,
           (SELECT date_trunc('minute', finished_at) FROM rota_runs WHERE finished_at >= :since
            ORDER BY finished_at OFFSET :batch LIMIT 1) AS full
""")
FORGET = text("DELETE FROM rota_run_counts WHERE minute >= :since AND minute < :until")
COUNT = text(f"""
    INSERT INTO rota_run_counts (job, minute, outcome, took, runs, took_ms)
    SELECT job, date_trunc(:unit, finished_at),
           CASE WHEN state = 'dead' AND {IS_WITHDRAWN} THEN reason ELSE state END,
           CASE WHEN ms IS NULL THEN {NEVER_STARTED}
                ELSE CAST(floor({PER_DOUBLING} * ln(greatest(ms, 1)) / ln(2)) AS smallint) END,
           count(*), coalesce(sum(CAST(ms AS bigint)), 0)
    FROM (
        SELECT job, state, reason, finished_at,
               CASE WHEN state IN ('succeeded', 'dead')
                    THEN CAST(extract(epoch FROM finished_at - started_at) * 1000 AS double precision) END AS ms
        FROM rota_runs WHERE finished_at >= :since AND finished_at < :until
    ) AS ended
    GROUP BY 1, 2, 3, 4
""")  # noqa: S608 — constants
SUM_UP = text("""
    WITH old AS (
        DELETE FROM rota_run_counts
        WHERE minute >= :since AND minute < :until AND minute <> date_trunc('hour', minute)
        RETURNING job, date_trunc('hour', minute) AS hour, outcome, took, runs, took_ms
    )
    INSERT INTO rota_run_counts AS kept (job, minute, outcome, took, runs, took_ms)
    SELECT job, hour, outcome, took, sum(runs), sum(took_ms) FROM old GROUP BY 1, 2, 3, 4
    ON CONFLICT (job, minute, outcome, took) DO UPDATE SET
        runs = kept.runs + excluded.runs, took_ms = kept.took_ms + excluded.took_ms
""")
LAST = text("SELECT max(minute) + interval '1 minute' FROM rota_run_counts")
OF_JOB = text("""
    SELECT to_timestamp(floor(extract(epoch FROM minute) / :step) * :step) AS at, outcome, took,
           CAST(sum(runs) AS bigint) AS runs, CAST(sum(took_ms) AS bigint) AS took_ms
    FROM rota_run_counts WHERE job = :job AND minute >= :since AND minute < :until
    GROUP BY 1, 2, 3 ORDER BY 1
""")


def count(session: Session, *, checkpoint: Callable[[dict[str, int]], None]) -> int:
    """Count the runs that have ended since the last call, in batches. Return how many.

    The first call counts the whole history, and what is old in it by the hour.
    """
    found = session.execute(BEGIN, {"settled": SETTLED}).one()
    if found.first is None:
        return 0
    old_until = settled_hour(found.until, found.last)
    begin = place = beginning(found.newest, found.first, old_until)
    counted = 0
    while (ahead := session.execute(AHEAD, {"since": place, "batch": BATCH}).one()).first is not None:
        place = max(place, hour_of(ahead.first) if ahead.first < old_until else ahead.first)
        if place >= found.until:
            break
        is_old = place < old_until and place == hour_of(place)
        until = place + LONGEST if is_old else next_place(place, ahead.full, found.until)
        counted += recount(session, place, until, "hour" if is_old else "minute")
        checkpoint({"counted": counted})
        place = until
    sum_up(session, begin, found.until)
    return counted


def beginning(newest: datetime | None, first: datetime, old_until: datetime) -> datetime:
    """Return where to begin: a while before the newest count or, if nothing has been counted, at the first run.

    If the newest count is old and of an hour, a count of the history was interrupted there. It goes on by the hour.
    """
    if newest is None:
        return hour_of(first) if first < old_until else first.replace(second=0, microsecond=0)
    if newest < old_until and newest == hour_of(newest):
        return newest
    return newest + timedelta(minutes=1) - AGAIN


def next_place(place: datetime, full: datetime | None, end: datetime) -> datetime:
    """Return the end of a batch that begins at ``place``. A batch has whole minutes, and at least one."""
    return min(place + LONGEST, max(full or end, place + timedelta(minutes=1)), end)


def recount(session: Session, since: datetime, until: datetime, unit: str = "minute") -> int:
    """Count the runs that ended in a span, by the minute or by the hour. Return how many."""
    session.execute(FORGET, {"since": since, "until": until})
    session.execute(COUNT, {"since": since, "until": until, "unit": unit})
    query = text("SELECT coalesce(sum(runs), 0) FROM rota_run_counts WHERE minute >= :since AND minute < :until")
    return int(session.execute(query, {"since": since, "until": until}).scalar_one())


def sum_up(session: Session, since: datetime, now: datetime) -> None:
    """Sum up the counts that have become old, by the hour. ``since`` is where the counting began."""
    last = session.execute(LAST).scalar_one()
    if last is None:
        return
    until = settled_hour(now, last - timedelta(minutes=1))
    session.execute(SUM_UP, {"since": min(since, until) - timedelta(days=1), "until": until})


def settled_hour(now: datetime, last: datetime) -> datetime:
    """Return the hour up to which counts are kept by the hour.

    The minutes before ``last``, the newest minute with a run, are kept by the minute, however old they are, since they
    will be counted again.
    """
    return hour_of(min(now - BY_MINUTE, last - AGAIN))


def hour_of(instant: datetime) -> datetime:
    """Return the beginning of the hour of ``instant``, as PostgreSQL's time zone has it in steps of whole hours."""
    return instant.replace(minute=0, second=0, microsecond=0)


def counted_until(connection: Connection) -> datetime | None:
    """Return the time up to which runs have been counted, or None if none have been."""
    found: datetime | None = connection.execute(LAST).scalar_one()
    return found


def of_job(
    connection: Connection, job: str, since: datetime, until: datetime, step: timedelta
) -> Sequence[Row[Any]]:  # fmt: skip
    """Return the counts of a job's runs in a span, by steps of ``step``, outcome and class of duration."""
    asked = {"job": job, "since": since, "until": until, "step": step.total_seconds()}
    return connection.execute(OF_JOB, asked).all()


def middle_ms(took: int) -> float:
    """Return the duration in the middle of a class, in milliseconds."""
    return float(2 ** ((took + 0.5) / PER_DOUBLING))
