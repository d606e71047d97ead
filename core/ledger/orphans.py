"""Orphans: waiting and dead runs of jobs that no live process has any more. They end as orphaned, and can be adopted
later.

The former state and reason of an orphan are kept, so that a run that was dead is dead again after its adoption.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from core.jobs.job import Job
from core.ledger.due import SENT_LANES, UNSENT_LANES
from core.ledger.key_slots import ABSENT as ABSENT_GAP
from core.ledger.key_slots import BY_KEY

WITH_SLOTS = text("SELECT job FROM rota_schedules")

#: The query uses the indexes of waiting and of dead runs, since a job may have millions of finished runs, and other
#: jobs may have millions of waiting runs.
WITH_REMAINS = text(f"""
    SELECT job FROM rota_schedules WHERE job = ANY(:jobs)
    UNION SELECT job FROM ({UNSENT_LANES}) AS unsent WHERE job = ANY(:jobs)
    UNION SELECT job FROM ({SENT_LANES}) AS sent WHERE job = ANY(:jobs)
    UNION SELECT job FROM rota_runs WHERE state = 'dead' AND job = ANY(:jobs)
""")  # noqa: S608 — constants

AWAITED = text(f"SELECT job FROM ({UNSENT_LANES}) AS unsent UNION SELECT job FROM ({SENT_LANES}) AS sent")  # noqa: S608

#: Each statement contains this condition, since a process with the job may have started after an earlier check.
IS_KNOWN_BY_NOBODY = """
    NOT EXISTS (
        SELECT 1 FROM rota_processes AS process
        LEFT JOIN rota_releases AS release ON release.fingerprint = process.release
        WHERE process.expires_at > clock_timestamp() AND (release.jobs IS NULL OR jsonb_exists(release.jobs, :job)))
"""

END = text(f"""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_runs
        WHERE job = :job AND id > :after AND state IN ('queued', 'retrying', 'dead') AND {IS_KNOWN_BY_NOBODY}
        ORDER BY id LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    UPDATE rota_runs SET
        former_state = state, former_reason = reason, state = 'orphaned', reason = :reason, sent_at = NULL,
        finished_at = clock_timestamp()
    WHERE id IN (SELECT id FROM batch)
    RETURNING id
""")  # noqa: S608 — constants

#: If the job has schedules of keys, a gap row without an end records the time from which their slots have no outcome.
FORGET_SLOTS = text(f"""
    WITH forgotten AS (
        DELETE FROM rota_schedules WHERE job = :job AND {IS_KNOWN_BY_NOBODY} RETURNING job, spec, accounted_until
    ), gap AS (
        INSERT INTO rota_gaps (job, began_at, ended_at, reason, slots)
        SELECT job, accounted_until, 'infinity', '{ABSENT_GAP}', 0 FROM forgotten WHERE spec = '{BY_KEY}'
    )
    SELECT job FROM forgotten
""")  # noqa: S608 — constants

WAITING = text("""
    SELECT state, count(*) AS runs FROM rota_runs
    WHERE job = :job AND state IN ('queued', 'retrying', 'running', 'dead')
    GROUP BY state ORDER BY state
""")

COUNTS = text("""
    SELECT job, reason, former_state AS was, count(*) AS runs, max(finished_at) AS last_at FROM rota_runs
    WHERE state = 'orphaned' AND (CAST(:jobs AS text[]) IS NULL OR job = ANY(:jobs))
    GROUP BY job, reason, former_state ORDER BY job, reason, former_state
""")

NEWEST = text("""
    SELECT * FROM rota_runs WHERE state = 'orphaned' AND (CAST(:jobs AS text[]) IS NULL OR job = ANY(:jobs))
    ORDER BY finished_at DESC, id DESC LIMIT :limit
""")

#: A queued slot becomes ``retrying``. Otherwise a misfire policy would record it as missed, although a person asked for
#: the run.
ADOPT = text("""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_runs
        WHERE state = 'orphaned' AND job = :job AND (CAST(:run_ids AS bigint[]) IS NULL OR id = ANY(:run_ids))
        ORDER BY finished_at, id LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    UPDATE rota_runs SET
        state = CASE WHEN former_state = 'queued' AND slot IS NOT NULL THEN 'retrying'
                     ELSE coalesce(former_state, 'retrying') END,
        reason = CASE WHEN former_state = 'dead' THEN former_reason ELSE 'adopted' END,
        finished_at = CASE WHEN former_state = 'dead' THEN clock_timestamp() END,
        queue = :queue, exclusive = :exclusive, former_state = NULL, former_reason = NULL, sent_at = NULL
    WHERE id IN (SELECT id FROM batch)
    RETURNING id, state
""")

#: The reason of orphans whose job no process had for a while. They are adopted automatically.
ABSENT = "absent"

WITH_ABSENT = text("""
    SELECT job FROM unnest(CAST(:jobs AS text[])) AS known (job) WHERE EXISTS (
        SELECT 1 FROM rota_runs AS run WHERE run.job = known.job AND state = 'orphaned' AND reason = 'absent')
""")

#: A slot is queued again, and the misfire policy decides whether the slot is too late, since no person asked for the
#: run.
READOPT = text("""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_runs WHERE state = 'orphaned' AND job = :job AND reason = 'absent'
        ORDER BY finished_at, id LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    UPDATE rota_runs SET
        state = coalesce(former_state, 'queued'),
        reason = CASE WHEN former_state = 'dead' THEN former_reason ELSE 'adopted' END,
        finished_at = CASE WHEN former_state = 'dead' THEN clock_timestamp() END,
        queue = CASE WHEN queue = ANY(CAST(:queues AS text[])) THEN queue ELSE (CAST(:queues AS text[]))[1] END,
        former_state = NULL, former_reason = NULL, sent_at = NULL
    WHERE id IN (SELECT id FROM batch)
""")

BATCH = 1000


@dataclass(frozen=True, slots=True)
class Count:
    """The number of runs of a job that were orphaned for one reason, from one state."""

    job: str
    reason: str | None
    was: str | None
    runs: int
    last_at: Any


def with_slots(connection: Connection) -> list[str]:
    """Return the jobs that have a watermark."""
    return list(connection.execute(WITH_SLOTS).scalars())


def with_remains(connection: Connection, jobs: Collection[str]) -> set[str]:
    """Return which of ``jobs`` have waiting or dead runs, or a watermark."""
    return set(connection.execute(WITH_REMAINS, {"jobs": list(jobs)}).scalars())


def awaited(connection: Connection) -> set[str]:
    """Return the jobs that have waiting runs, with or without a live process that has the job."""
    return set(connection.execute(AWAITED).scalars())


def end(connection: Connection, job: str, reason: str, *, after: int = 0, batch: int = BATCH) -> list[int]:
    """Orphan up to ``batch`` waiting or dead runs of ``job`` with ids greater than ``after``. Return the ids.

    No run is orphaned if a live process has the job or may have it.
    """
    return sorted(
        connection.execute(END, {"job": job, "reason": reason, "after": after, "batch": batch}).scalars()
    )  # fmt: skip


def forget_slots(connection: Connection, job: str) -> bool:
    """Stop accounting for the slots of ``job``. Return whether they were accounted for."""
    return connection.execute(FORGET_SLOTS, {"job": job}).first() is not None


def waiting(connection: Connection, job: str) -> dict[str, int]:
    """Return how many runs of ``job`` are waiting, running or dead, by state."""
    return {row.state: row.runs for row in connection.execute(WAITING, {"job": job})}


def counts(connection: Connection, jobs: Collection[str] | None = None) -> list[Count]:
    """Return the numbers of orphans of ``jobs``, or of all jobs if ``jobs`` is None."""
    rows = connection.execute(COUNTS, {"jobs": None if jobs is None else list(jobs)}).all()
    return [Count(row.job, row.reason, row.was, row.runs, row.last_at) for row in rows]


def newest(connection: Connection, jobs: Collection[str] | None = None, *, limit: int = 50) -> list[Row[Any]]:
    """Return the newest orphans."""
    parameters = {"jobs": None if jobs is None else list(jobs), "limit": limit}
    return list(connection.execute(NEWEST, parameters).all())


def adopt(
    connection: Connection, job: Job, *, batch: int = BATCH, run_ids: Collection[int] | None = None
) -> dict[int, str]:
    """Restore the former state of up to ``batch`` orphans of ``job``, only of ``run_ids`` if they are given.

    Return the new state of each run by its id.
    """
    wanted = None if run_ids is None else list(run_ids)
    parameters = {"job": job.name, "queue": job.queue, "exclusive": job.exclusive, "batch": batch, "run_ids": wanted}
    return {row.id: row.state for row in connection.execute(ADOPT, parameters)}


def with_absent(connection: Connection, jobs: Collection[str]) -> set[str]:
    """Return which of ``jobs`` have orphans from a time when no process had the job."""
    return set(connection.execute(WITH_ABSENT, {"jobs": list(jobs)}).scalars())


def readopt(connection: Connection, job: str, queues: Collection[str], *, batch: int = BATCH) -> int:
    """Restore up to ``batch`` runs that were orphaned while no process had ``job``. Return how many.

    ``queues`` are the present queues of the job. A run on any other queue moves to one of these.
    """
    return connection.execute(READOPT, {"job": job, "queues": sorted(queues), "batch": batch}).rowcount
