"""Deletes slots that have succeeded, and counts them, for jobs with ``keep="failures"``.

Only slots of schedules made at run time are deleted, an hour after their end, and only if they succeeded at their first
attempt without a result. One statement deletes and counts the runs. So each deleted run is counted exactly once, in the
minute in which it finished. If a slot has neither a run nor a gap row, and the counts cover its time, then the slot has
succeeded.

The counts also have the newest deleted slot of each job. The job's watermark never moves to a time before this slot, so
no deleted slot is inserted again.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from core.ledger.models import IS_FORGETTABLE

#: A run that may be deleted is kept for this long after its end.
KEPT = timedelta(hours=1)
BATCH = 5000

DELETE = text(f"""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_runs
        WHERE job = :job AND {IS_FORGETTABLE} AND finished_at < statement_timestamp() - CAST(:kept AS interval)
        ORDER BY finished_at LIMIT :batch FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM rota_runs WHERE id IN (SELECT id FROM batch) RETURNING slot, finished_at
    ), counted AS (
        INSERT INTO rota_success_counts AS kept (job, minute, runs, first_at, last_at, first_slot, last_slot)
        SELECT :job, date_trunc('minute', finished_at), count(*), min(finished_at), max(finished_at),
               min(slot), max(slot)
        FROM gone GROUP BY 2 ORDER BY 2
        ON CONFLICT (job, minute) DO UPDATE SET
            runs = kept.runs + excluded.runs, first_at = least(kept.first_at, excluded.first_at),
            last_at = greatest(kept.last_at, excluded.last_at),
            first_slot = least(kept.first_slot, excluded.first_slot),
            last_slot = greatest(kept.last_slot, excluded.last_slot)
    )
    SELECT count(*) FROM gone
""")  # noqa: S608 — a constant

LAST_SLOT = text("SELECT max(last_slot) FROM rota_success_counts WHERE job = :job")
COVERS = text("""
    SELECT coalesce(min(first_slot) <= :slot AND max(last_slot) >= :slot, false)
    FROM rota_success_counts WHERE job = :job
""")


def prune(session: Session, jobs: Iterable[str], *, checkpoint: Callable[[dict[str, int]], None]) -> int:
    """Delete and count the runs of ``jobs`` that are not kept any longer, in batches. Return how many."""
    deleted = 0
    for job in jobs:
        values = {"job": job, "kept": KEPT, "batch": BATCH}
        while count := int(session.execute(DELETE, values).scalar_one()):
            deleted += count
            checkpoint({"deleted": deleted})
    return deleted


def last_slot(connection: Connection, job: str) -> datetime | None:
    """Return the newest slot of a job whose run was deleted and counted, or None if there is none."""
    found: datetime | None = connection.execute(LAST_SLOT, {"job": job}).scalar_one()
    return found


def covers(connection: Connection, job: str, slot: datetime) -> bool:
    """Return whether the counts cover the time of ``slot``. If so, a slot without a run or a gap row has succeeded."""
    return bool(connection.execute(COVERS, {"job": job, "slot": slot}).scalar_one())
