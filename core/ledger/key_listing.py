"""Lists the schedules made at run time of all jobs, for people, even if no process has the job."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

#: The query reads one index entry for each job.
JOBS = text("""
    WITH RECURSIVE seen AS (
        (SELECT job FROM rota_key_schedules ORDER BY job LIMIT 1)
        UNION ALL
        SELECT (SELECT row.job FROM rota_key_schedules AS row WHERE row.job > seen.job ORDER BY row.job LIMIT 1)
        FROM seen WHERE seen.job IS NOT NULL
    )
    SELECT job FROM seen WHERE job IS NOT NULL
""")

LIST = text("""
    SELECT *, nullif(paused_until, 'infinity') AS ends_at, paused_until > clock_timestamp() AS is_paused,
           clock_timestamp() AS now
    FROM rota_key_schedules
    WHERE (CAST(:jobs AS text[]) IS NULL OR job = ANY(CAST(:jobs AS text[])))
      AND (CAST(:among AS text[]) IS NULL OR job = ANY(CAST(:among AS text[])))
      AND (CAST(:key AS text) IS NULL OR key = :key) AND key > :after
      AND (NOT :is_paused OR paused_until > clock_timestamp()) AND (NOT :is_backing_off OR stretch > 0)
    ORDER BY job, key LIMIT :limit
""")

COUNTS = text("""
    SELECT job, count(*) AS schedules FROM rota_key_schedules WHERE job = ANY(CAST(:jobs AS text[]))
    GROUP BY job ORDER BY job
""")

REMOVE_ALL = text("""
    WITH gone AS (
        DELETE FROM rota_key_schedules WHERE job = :job RETURNING key, spec, phase, stretched, extra_at, since
    )
    INSERT INTO rota_key_schedule_log (job, key, since, action, spec, phase, stretched, extra_at, by)
    SELECT :job, key, clock_timestamp(), 'removed', spec, phase, stretched, extra_at, :by FROM gone
""")


def jobs(connection: Connection) -> set[str]:
    """Return the jobs that have schedules."""
    return set(connection.execute(JOBS).scalars())


def listed(
    connection: Connection,
    *,
    jobs: Collection[str] | None,
    among: Collection[str] | None,
    key: str | None,
    is_paused: bool,
    is_backing_off: bool,
    after: str,
    limit: int,
) -> Sequence[Row[Any]]:
    """Return the schedules of the jobs that are both in ``jobs`` and in ``among``, by job and key.

    If one of the two is None, it stands for all jobs.
    """
    values = {
        "jobs": None if jobs is None else list(jobs),
        "among": None if among is None else list(among),
        "key": key,
        "is_paused": is_paused,
        "is_backing_off": is_backing_off,
        "after": after,
        "limit": limit,
    }
    return connection.execute(LIST, values).all()


def counts(connection: Connection, jobs: Collection[str]) -> dict[str, int]:
    """Return how many schedules each of ``jobs`` has."""
    return {row.job: row.schedules for row in connection.execute(COUNTS, {"jobs": list(jobs)})}


def remove_all(connection: Connection, job: str, *, by: str) -> int:
    """Remove all schedules of a job that no process has. Return how many."""
    return connection.execute(REMOVE_ALL, {"job": job, "by": by}).rowcount
