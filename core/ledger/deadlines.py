"""Deadlines: a run that has not started by its ``expires_at`` is missed.

Claims refuse such a run at once, and the dispatcher ends it within a second. A deadline applies only until the first
start: a retry is never dropped because it is late.
"""

from sqlalchemy import Connection, text

#: The most runs that one statement ends.
BATCH = 1000

HAS_EXPIRED = "state = 'queued' AND expires_at <= statement_timestamp() AND attempt = 0"
#: The batch is chosen once. Otherwise PostgreSQL may execute a subquery of the condition again for each row, and then
#: lock more rows.
EXPIRE = text(f"""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_runs WHERE {HAS_EXPIRED} ORDER BY expires_at LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    UPDATE rota_runs SET state = 'missed', reason = 'expired', finished_at = clock_timestamp()
    WHERE id IN (SELECT id FROM batch)
    RETURNING job
""")  # noqa: S608 — a constant


def expire(connection: Connection, batch: int = BATCH) -> list[str]:
    """End up to ``batch`` runs that have expired. Return the job of each ended run."""
    return list(connection.execute(EXPIRE, {"batch": batch}).scalars())
