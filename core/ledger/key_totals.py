"""Totals of schedules made at run time: the number of schedules, and the outcomes of their slots."""

from collections.abc import Collection, Iterable
from datetime import datetime

from sqlalchemy import Connection, Row, text

#: Paused schedules do not count as backing off.
SCHEDULES = text("""
    SELECT job, count(*) AS schedules, count(*) FILTER (WHERE paused_until > clock_timestamp()) AS paused,
           count(*) FILTER (WHERE stretch > 0 AND (paused_until > clock_timestamp()) IS NOT TRUE) AS backing_off
    FROM rota_key_schedules WHERE job = ANY(CAST(:jobs AS text[])) GROUP BY job
""")

#: The counts include runs that were deleted.
SLOTS = text("""
    SELECT job, outcome, sum(slots) AS slots FROM (
        SELECT job, state AS outcome, count(*) AS slots FROM rota_runs
        WHERE job = ANY(CAST(:jobs AS text[])) AND finished_at >= :since AND slot IS NOT NULL AND key <> ''
        GROUP BY job, state
        UNION ALL
        SELECT job, 'succeeded', sum(runs) FROM rota_success_counts
        WHERE job = ANY(CAST(:jobs AS text[])) AND minute >= :since GROUP BY job
        UNION ALL
        SELECT job, reason, sum(slots) FROM rota_gaps
        WHERE job = ANY(CAST(:jobs AS text[])) AND ended_at >= :since GROUP BY job, reason
    ) AS found GROUP BY job, outcome
""")


def schedules(connection: Connection, jobs: Collection[str]) -> dict[str, Row[tuple[str, int, int, int]]]:
    """Return how many schedules each of ``jobs`` has, and how many of them are paused or back off."""
    return {row.job: row for row in connection.execute(SCHEDULES, {"jobs": list(jobs)})}


def slots(connection: Connection, jobs: Iterable[str], since: datetime) -> dict[str, dict[str, int]]:
    """Return, for each job, how many slots have had each outcome since ``since``. This must be a whole minute.

    An outcome is a state, or a gap's reason.

    A run counts at the time when it finished, and a gap counts at the time when it ended.
    """
    found: dict[str, dict[str, int]] = {job: {} for job in jobs}
    for row in connection.execute(SLOTS, {"jobs": list(found), "since": since}):
        found[row.job][row.outcome] = int(row.slots)
    return found
