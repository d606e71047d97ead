"""Expected against actual slots: what came due since the last slot of each job that succeeded.

A slot is *overdue* when it should have succeeded by now and neither it nor a later one has:

- at once if it is dead, missed or orphaned;
- after ``TOLERANCE`` if nobody has started it;
- after its job's hard limit if it is at work or being retried, or was skipped since another run was at work.

One that came due in a pause is never overdue. The last success of each job is kept in ``rota_schedules``, where the
dispatcher brings it up to date every few seconds: looking costs a short walk down an index for each job, and nothing
where runs are claimed and finished.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from core.jobs.job import Job
from core.ledger.slots import TOLERANCE

#: Slots since the last success are counted up to here.
MOST_COUNTED = 1000
#: So many slots in a row without a success are wrong.
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
               count(*) FILTER (WHERE state = 'dead') AS dead,
               count(*) FILTER (WHERE state = 'missed') AS missed,
               count(*) FILTER (WHERE state = 'orphaned') AS orphaned,
               count(*) FILTER (WHERE state = 'queued') AS queued,
               count(*) FILTER (WHERE state = 'running') AS running,
               count(*) FILTER (WHERE state = 'retrying') AS retrying,
               count(*) FILTER (WHERE state = 'skipped' AND reason = 'paused') AS paused,
               count(*) FILTER (WHERE state = 'skipped' AND reason <> 'paused') AS overlapped,
               count(*) FILTER (WHERE CASE
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
    """How a job stands: its last success, and what became of the slots on record since, by state."""

    job: str
    #: The schedule by which its slots are accounted for, and until when they are.
    spec: str
    accounted_until: datetime
    #: Whether the success is newer than the one that was remembered.
    is_news: bool
    #: The newest slot that succeeded, and when it was finished; None: none ever did.
    succeeded_slot: datetime | None
    succeeded_at: datetime | None
    #: The newest slot on record since.
    recorded_until: datetime | None
    dead: int
    missed: int
    orphaned: int
    queued: int
    running: int
    retrying: int
    #: Skipped, in a pause.
    paused: int
    #: Skipped, since another run was at work.
    overlapped: int
    overdue: int


def look(connection: Connection, jobs: Iterable[Job]) -> list[Standing]:
    """How each of ``jobs`` stands whose slots are accounted for."""
    looked_for = list(jobs)
    parameters: dict[str, Any] = {
        "jobs": [job.name for job in looked_for],
        "limits": [job.hard_limit for job in looked_for],
        "tolerance": TOLERANCE,
    }
    return [Standing(*row) for row in connection.execute(LOOK, parameters)]


def remember(connection: Connection, standings: Iterable[Standing]) -> None:
    """Write the news down, so that the next look begins there."""
    news = [standing for standing in standings if standing.is_news]
    if not news:
        return
    parameters = {
        "jobs": [standing.job for standing in news],
        "slots": [standing.succeeded_slot for standing in news],
        "instants": [standing.succeeded_at for standing in news],
    }
    connection.execute(REMEMBER, parameters)
