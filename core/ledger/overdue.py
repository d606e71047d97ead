"""Checks each job's slots that came due since its last success, and counts the slots that are overdue.

A slot is *overdue* when it should have succeeded by now, and neither this slot nor a later slot has succeeded:

- at once if it is dead, missed or orphaned, unless a person or an application has dropped or cancelled it;
- after ``TOLERANCE`` if no worker has started it;
- after its job's hard limit if it is running or being retried, or was skipped because another run was running.

A slot that came due in a pause is never overdue. ``rota_schedules`` has the last success of each job, which the
dispatcher updates every 15 seconds. So a check costs a short index scan per job, and does not slow down claims and
commits of runs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from core.jobs.job import Job
from core.ledger.operations import IS_WITHDRAWN
from core.ledger.slots import TOLERANCE

#: At most this many slots since the last success are counted.
MOST_COUNTED = 1000
#: A job is reported after this many slots in a row without a success.
WRONG_FROM = 2

LOOK = text(f"""
    SELECT expected.job, schedule.spec, schedule.accounted_until, success.slot IS NOT NULL AS is_news,
           coalesce(success.slot, schedule.succeeded_slot) AS succeeded_slot,
           coalesce(success.finished_at, schedule.succeeded_at) AS succeeded_at, later.*
    FROM unnest(CAST(:jobs AS text[]), CAST(:limits AS interval[])) AS expected (job, hard_limit)
    JOIN rota_schedules AS schedule USING (job)
    LEFT JOIN LATERAL (
        SELECT slot, finished_at FROM (
            SELECT slot, finished_at, state FROM rota_runs AS run
            WHERE run.job = expected.job AND run.key = '' AND run.slot > coalesce(schedule.succeeded_slot, '-infinity')
            ORDER BY run.slot DESC LIMIT {MOST_COUNTED}) AS newest
        WHERE state = 'succeeded' ORDER BY slot DESC LIMIT 1) AS success ON true
    CROSS JOIN LATERAL (
        SELECT max(slot) AS recorded_until,
               count(*) FILTER (WHERE state = 'dead' AND NOT {IS_WITHDRAWN}) AS dead,
               count(*) FILTER (WHERE state = 'missed') AS missed,
               count(*) FILTER (WHERE state = 'orphaned') AS orphaned,
               count(*) FILTER (WHERE state = 'queued') AS queued,
               count(*) FILTER (WHERE state = 'running') AS running,
               count(*) FILTER (WHERE state = 'retrying') AS retrying,
               count(*) FILTER (WHERE state = 'skipped' AND reason = 'paused') AS paused,
               count(*) FILTER (WHERE state = 'skipped' AND reason <> 'paused') AS overlapped,
               count(*) FILTER (WHERE CASE
                   WHEN state = 'dead' AND {IS_WITHDRAWN} THEN false
                   WHEN state IN ('dead', 'missed', 'orphaned') THEN true
                   WHEN state = 'queued' THEN slot < clock_timestamp() - CAST(:tolerance AS interval)
                   WHEN state = 'skipped' AND reason = 'paused' THEN false
                   ELSE slot < clock_timestamp() - expected.hard_limit END) AS overdue
        FROM (
            SELECT slot, state, reason FROM rota_runs AS run
            WHERE run.job = expected.job AND run.key = ''
              AND run.slot > coalesce(success.slot, schedule.succeeded_slot, '-infinity')
            ORDER BY run.slot DESC LIMIT {MOST_COUNTED}) AS since) AS later
    ORDER BY expected.job
""")  # noqa: S608 — constants

REMEMBER = text("""
    UPDATE rota_schedules AS schedule SET succeeded_slot = news.slot, succeeded_at = news.at
    FROM unnest(CAST(:jobs AS text[]), CAST(:slots AS timestamptz[]), CAST(:instants AS timestamptz[]))
        AS news (job, slot, at)
    WHERE schedule.job = news.job
""")


@dataclass(frozen=True, slots=True)
class Standing:
    """A job's last success, and the number of its later slots in each state."""

    job: str
    #: The schedule by which the job's slots are accounted for, and the time up to which they are.
    spec: str
    accounted_until: datetime
    #: Whether this success is newer than the stored success.
    is_news: bool
    #: The newest slot that succeeded, and the time when its run finished; None if no slot ever succeeded.
    succeeded_slot: datetime | None
    succeeded_at: datetime | None
    #: The newest recorded slot after that success.
    recorded_until: datetime | None
    dead: int
    missed: int
    orphaned: int
    queued: int
    running: int
    retrying: int
    #: The number of slots that were skipped because of a pause.
    paused: int
    #: The number of slots that were skipped because another run was running.
    overlapped: int
    overdue: int


def look(connection: Connection, jobs: Iterable[Job]) -> list[Standing]:
    """Return the standing of each of ``jobs`` whose slots are accounted for."""
    looked_for = list(jobs)
    parameters: dict[str, Any] = {
        "jobs": [job.name for job in looked_for],
        "limits": [job.hard_limit for job in looked_for],
        "tolerance": TOLERANCE,
    }
    return [Standing(*row) for row in connection.execute(LOOK, parameters)]


def remember(connection: Connection, standings: Iterable[Standing]) -> None:
    """Store the new successes, since the next check begins at these."""
    news = [standing for standing in standings if standing.is_news]
    if not news:
        return
    parameters = {
        "jobs": [standing.job for standing in news],
        "slots": [standing.succeeded_slot for standing in news],
        "instants": [standing.succeeded_at for standing in news],
    }
    connection.execute(REMEMBER, parameters)
