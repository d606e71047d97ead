"""Reads how many runs wait in each queue, from the partial indexes of waiting runs. A long history does not slow this
down.
"""

from typing import Any

from sqlalchemy import Connection, Row, text

from core.ledger.models import IS_SENT, IS_UNSENT

#: Counts are exact up to this number.
MOST_COUNTED = 10_000

#: ``due`` and ``later`` count runs that the dispatcher has not sent. ``sent`` counts runs that wait in Redis, or are
#: parked.
#: The oldest due time is exact, and costs one step in an index for each job that has waiting runs.
WAITING = text(f"""
    SELECT queue, due, later, sent, running, oldest_due_at FROM unnest(CAST(:queues AS text[])) AS wanted (queue),
    LATERAL (
        SELECT count(*) FILTER (WHERE due_at <= statement_timestamp()) AS due,
               count(*) FILTER (WHERE due_at > statement_timestamp()) AS later
        FROM (
            SELECT due_at FROM rota_runs WHERE rota_runs.queue = wanted.queue AND {IS_UNSENT} LIMIT :most
        ) AS unsent) AS unsent,
    LATERAL (
        WITH RECURSIVE first (job, due_at) AS (
            (SELECT job, due_at FROM rota_runs WHERE rota_runs.queue = wanted.queue AND {IS_UNSENT}
             ORDER BY job, due_at LIMIT 1)
            UNION ALL
            SELECT next.job, next.due_at FROM first, LATERAL (
                SELECT job, due_at FROM rota_runs
                WHERE rota_runs.queue = wanted.queue AND {IS_UNSENT} AND rota_runs.job > first.job
                ORDER BY job, due_at LIMIT 1) AS next)
        SELECT min(due_at) AS oldest_due_at FROM first) AS oldest,
    LATERAL (
        SELECT count(*) AS sent FROM (
            SELECT 1 FROM rota_runs WHERE rota_runs.queue = wanted.queue AND {IS_SENT} LIMIT :most
        ) AS sent) AS sent,
    LATERAL (
        SELECT count(*) AS running FROM rota_runs
        WHERE rota_runs.queue = wanted.queue AND state = 'running'
          AND process_id IN (SELECT id FROM rota_processes)) AS running
    ORDER BY queue
""")  # noqa: S608 — constants


def waiting(connection: Connection, queues: list[str]) -> list[Row[Any]]:
    """Return the numbers of waiting and running runs of each of ``queues``. A number of waiting runs is at most
    ``MOST_COUNTED``.
    """
    return list(connection.execute(WAITING, {"queues": queues, "most": MOST_COUNTED}).all())
