"""Reads how many runs wait in each queue, from the partial indexes of waiting runs. A long history does not slow this
down.
"""

from collections.abc import Collection
from datetime import datetime
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
        SELECT min(due_at) AS oldest_due_at FROM first WHERE job <> ALL (CAST(:held AS text[]))) AS oldest,
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


#: The due time of the run of each job that was sent first, by one step in an index for each job. Runs that wait for
#: another run or for a limit are left out.
OLDEST_SENT = text(f"""
    SELECT queue, oldest.due_at FROM unnest(CAST(:queues AS text[])) AS wanted (queue), LATERAL (
        WITH RECURSIVE first (job, sent_at, due_at) AS (
            (SELECT job, sent_at, due_at FROM rota_runs WHERE rota_runs.queue = wanted.queue AND {IS_SENT}
             ORDER BY job, sent_at LIMIT 1)
            UNION ALL
            SELECT next.job, next.sent_at, next.due_at FROM first, LATERAL (
                SELECT job, sent_at, due_at FROM rota_runs
                WHERE rota_runs.queue = wanted.queue AND {IS_SENT} AND rota_runs.job > first.job
                ORDER BY job, sent_at LIMIT 1) AS next)
        SELECT min(due_at) AS due_at FROM first
        WHERE sent_at < 'infinity' AND job <> ALL (CAST(:held AS text[]))) AS oldest
    WHERE oldest.due_at IS NOT NULL
""")  # noqa: S608 — constants


def waiting(connection: Connection, queues: list[str], held: Collection[str] = ()) -> list[Row[Any]]:
    """Return the numbers of waiting and running runs of each of ``queues``. A number of waiting runs is at most
    ``MOST_COUNTED``. The oldest run is not one of the jobs ``held``.
    """
    values = {"queues": queues, "most": MOST_COUNTED, "held": sorted(held)}
    return list(connection.execute(WAITING, values).all())


def oldest_sent(connection: Connection, queues: list[str], held: Collection[str] = ()) -> dict[str, datetime]:
    """Return a due time for each queue with runs that were sent to workers, and that no worker has started.

    The due time is the earliest among the runs that were sent first of each job. The jobs ``held`` are left out.
    """
    rows = connection.execute(OLDEST_SENT, {"queues": queues, "held": sorted(held)})
    return {row.queue: row.due_at for row in rows}
