"""Takes due runs for the threads of one process: in local mode, and while Redis is away.

In nine of ten cases, the runs with the highest priority are taken. Among these, the lanes take turns, and so do the
keys of each lane (``core/ledger/shares.py``). In one of ten cases, the oldest runs are taken.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from core.ledger.carrier import OutgoingRun
from core.ledger.due import SENT_LANES, UNSENT_LANES, lanes
from core.ledger.models import IS_SENT, IS_UNSENT, IS_URGENT
from core.ledger.shares import OLDEST_EVERY, keys_in_turn

#: A run without a key is searched among at most this many of the oldest runs of each lane.
SEARCHED = 100

#: Takes due runs of some queues. Runs that were sent before ``began``, or that no process has claimed for a while,
#: count as lost and are taken too. In a lane, it may be the turn of keys that have no due runs. Then the statement also
#: returns the last of these keys, so that the next call continues after it.
TAKE = text(f"""
    WITH asked AS (
        SELECT lane.queue, lane.job, coalesce(turn.after, '') AS after
        FROM ({UNSENT_LANES}) AS lane
        LEFT JOIN unnest(CAST(:turn_queues AS text[]), CAST(:turn_jobs AS text[]), CAST(:afters AS text[]))
            AS turn (queue, job, after) USING (queue, job)
        WHERE lane.job = ANY(:jobs) AND lane.queue = ANY(:queues) AND lane.first_at <= statement_timestamp()
    ), unsent AS MATERIALIZED (
        SELECT asked.queue, asked.job, run.*,
               row_number() OVER (PARTITION BY asked.queue, asked.job ORDER BY run.due_at, run.id) AS place
        FROM asked CROSS JOIN LATERAL (
            SELECT id, due_at, priority FROM rota_runs
            WHERE {IS_UNSENT} AND due_at <= statement_timestamp() AND queue = asked.queue AND job = asked.job
            ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED) AS run
    ), urgent AS MATERIALIZED (
        SELECT lane.queue, lane.job, run.*, 1 AS place
        FROM ({lanes(IS_URGENT, "due_at", "priority")}) AS lane CROSS JOIN LATERAL (
            SELECT id, due_at, priority FROM rota_runs
            WHERE {IS_URGENT} AND due_at <= statement_timestamp() AND queue = lane.queue AND job = lane.job
              AND priority = lane.priority
            ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED) AS run
        WHERE lane.job = ANY(:jobs) AND lane.queue = ANY(:queues) AND lane.first_at <= statement_timestamp()
    ), lost AS MATERIALIZED (
        SELECT lane.queue, lane.job, run.*, 1 AS place FROM ({SENT_LANES}) AS lane CROSS JOIN LATERAL (
            SELECT id, due_at, priority FROM rota_runs
            WHERE {IS_SENT} AND due_at <= statement_timestamp() AND queue = lane.queue AND job = lane.job
              AND sent_at < greatest(CAST(:began AS timestamptz), statement_timestamp() - CAST(:age AS interval))
            ORDER BY sent_at LIMIT :most FOR UPDATE SKIP LOCKED) AS run
        WHERE lane.job = ANY(:jobs) AND lane.queue = ANY(:queues)
    ), backlogged AS MATERIALIZED (
        SELECT * FROM asked WHERE NOT :by_age AND (
            SELECT count(*) FROM unsent WHERE unsent.queue = asked.queue AND unsent.job = asked.job) >= :most
        ORDER BY (queue, job) <= (:last_queue, :last_job), queue, job LIMIT :most
    ), tenant AS MATERIALIZED (
        SELECT asked.queue, asked.job, walked.*
        FROM backlogged AS asked CROSS JOIN LATERAL ({keys_in_turn("asked.queue", ":most")}) AS walked
    ), without_key AS (
        SELECT lane.queue, lane.job, coalesce(min(tenant.number) FILTER (WHERE tenant.wraps), 1) AS number
        FROM backlogged AS lane LEFT JOIN tenant USING (queue, job)
        GROUP BY lane.queue, lane.job HAVING count(tenant.key) = 0 OR bool_or(tenant.wraps)
    ), turn AS MATERIALIZED (
        SELECT lane.queue, lane.job, run.*, 2 * lane.number AS place, lane.key FROM tenant AS lane CROSS JOIN LATERAL (
            SELECT id, due_at, priority FROM rota_runs
            WHERE {IS_UNSENT} AND due_at <= statement_timestamp() AND key <> ''
              AND queue = lane.queue AND job = lane.job AND key = lane.key
            ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED) AS run
        UNION ALL
        SELECT lane.queue, lane.job, run.*, 2 * lane.number - 1, '' FROM without_key AS lane CROSS JOIN LATERAL (
            SELECT run.id, run.due_at, run.priority FROM (
                SELECT id FROM (
                    SELECT id, key FROM rota_runs
                    WHERE {IS_UNSENT} AND due_at <= statement_timestamp() AND queue = lane.queue AND job = lane.job
                    ORDER BY due_at LIMIT :searched) AS near
                WHERE key = '' LIMIT 1) AS first CROSS JOIN LATERAL (
                SELECT * FROM rota_runs WHERE id = first.id LIMIT 1 FOR UPDATE SKIP LOCKED) AS run
            WHERE {IS_UNSENT}) AS run
    ), candidate AS (
        SELECT queue, job, id, due_at, priority, min(place) AS place, max(key) AS key FROM (
            SELECT *, CAST(NULL AS text) AS key FROM urgent
            UNION ALL SELECT *, NULL FROM lost
            UNION ALL SELECT * FROM turn
            UNION ALL
            SELECT queue, job, id, due_at, priority, 2 * place + CASE WHEN (queue, job) IN (
                SELECT queue, job FROM tenant) THEN 2 * :most ELSE 0 END, NULL FROM unsent) AS either
        GROUP BY queue, job, id, due_at, priority
    ), chosen AS MATERIALIZED (
        SELECT id, key, place FROM candidate ORDER BY
            CASE WHEN :by_age THEN 0 ELSE priority END DESC,
            CASE WHEN :by_age THEN 0 ELSE place END,
            CASE WHEN :by_age THEN true ELSE (queue, job) <= (:last_queue, :last_job) END,
            CASE WHEN :by_age THEN '' ELSE queue END, CASE WHEN :by_age THEN '' ELSE job END,
            due_at, id
        LIMIT :most
    ), taken AS (
        UPDATE rota_runs AS run SET sent_at = statement_timestamp() FROM chosen WHERE run.id = chosen.id
        RETURNING run.id, run.job, run.queue, run.priority, run.due_at, chosen.key, chosen.place
    )
    SELECT id, job, queue, priority, due_at, key, place FROM taken
    UNION ALL
    (SELECT DISTINCT ON (queue, job) NULL, job, queue, NULL, NULL, key, number FROM tenant
     WHERE NOT EXISTS (SELECT 1 FROM turn WHERE turn.queue = tenant.queue AND turn.job = tenant.job)
     ORDER BY queue, job, number DESC)
""")  # noqa: S608 — constants


@dataclass(slots=True)
class Turns:
    """The lane and the keys that had their turns last. Each thread that takes runs has its own record."""

    #: The number of times that runs were taken.
    takes: int = 0
    #: The lane that had its turn last.
    last: tuple[str, str] = ("", "")
    #: The last key of each lane that had a turn.
    keys: dict[tuple[str, str], str] = field(default_factory=dict)

    def note(self, rows: Collection[Row[Any]]) -> None:
        """Remember which keys and lanes had their turn."""
        had_turn = [row for row in rows if row.key is not None]
        self.keys |= {(row.queue, row.job): row.key for row in sorted(had_turn, key=lambda row: row.place)}
        lanes_in_turn = [(row.queue, row.job) for row in rows if row.id is not None and not row.priority]
        if lanes_in_turn:
            self.last = max((lane for lane in lanes_in_turn if lane <= self.last), default=max(lanes_in_turn))


def take(
    connection: Connection,
    jobs: Collection[str],
    queues: Collection[str],
    turns: Turns,
    *,
    most: int,
    began: datetime,
    resend_seconds: float,
) -> list[OutgoingRun]:
    """Mark up to ``most`` due runs of ``jobs`` on ``queues`` as sent, and return these runs, the most urgent first.

    ``turns`` is the caller's record of turns. Runs that were sent before ``began``, by the database's clock, count as
    lost.
    """
    turns.takes += 1
    values = {
        "jobs": list(jobs),
        "queues": list(queues),
        "most": most,
        "began": began,
        "age": f"{resend_seconds} seconds",
        "by_age": turns.takes % OLDEST_EVERY == 0,
        "searched": SEARCHED,
        "turn_queues": [queue for queue, _ in turns.keys],
        "turn_jobs": [job for _, job in turns.keys],
        "afters": list(turns.keys.values()),
        "last_queue": turns.last[0],
        "last_job": turns.last[1],
    }
    rows = connection.execute(TAKE, values).all()
    turns.note(rows)
    in_order = sorted((row for row in rows if row.id is not None), key=lambda row: (-row.priority, row.due_at, row.id))
    return [OutgoingRun(row.id, row.job, row.queue, row.priority) for row in in_order]
