"""Takes the due runs of one queue, as the dispatcher sends them: jobs share a batch, and the keys of a job take turns.

Runs with a priority are taken first, in a batch of their own. From the other runs, each job gets an equal share of the
batch. If a job has no more due runs than its share, all its due runs are taken. Otherwise, a tenth of the share goes to
the job's oldest runs. The job's keys share the other nine tenths, or take turns if there are many keys. So the runs of
one key, however many there are, hardly delay the runs of another key. The runs without a key count as one key.

Each part reads a bounded number of index entries, even beside a backlog of other runs, or of keys whose runs are not
due. So a run without a key, or without a priority, may be overlooked while many older runs with a key or a priority
wait. It is taken when it is one of the oldest.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, text

from core.ledger.carrier import OutgoingRun
from core.ledger.due import lanes
from core.ledger.models import IS_UNSENT, IS_URGENT

#: One in this many runs of a backlog is chosen by its age.
OLDEST_EVERY = 10
#: Runs without a key or without a priority are searched among this many of the oldest runs. The number is divided among
#: the jobs, and each job has at least ``SEARCHED_OF_JOB``.
SEARCHED = 1000
SEARCHED_OF_JOB = 50

#: The queues and priorities with due runs, with the jobs of these runs, the highest priority first.
DUE_URGENT = text(f"""
    SELECT queue, priority, array_agg(job) AS jobs FROM ({lanes(IS_URGENT, "due_at", "priority")}) AS lane
    WHERE first_at <= statement_timestamp() AND job = ANY(:jobs)
    GROUP BY queue, priority ORDER BY priority DESC
""")  # noqa: S608 — constants

#: Takes due runs of a priority above 0, the oldest first.
TAKE_URGENT = text(f"""
    WITH chosen AS MATERIALIZED (
        SELECT run.id FROM unnest(CAST(:jobs AS text[])) AS wanted (job) CROSS JOIN LATERAL (
            SELECT id, due_at FROM rota_runs
            WHERE {IS_URGENT} AND due_at <= statement_timestamp()
              AND queue = :queue AND job = wanted.job AND priority = :priority
            ORDER BY due_at LIMIT :batch FOR UPDATE SKIP LOCKED) AS run
        ORDER BY run.due_at, run.id LIMIT :batch
    )
    UPDATE rota_runs SET sent_at = statement_timestamp() WHERE id IN (SELECT id FROM chosen)
    RETURNING id, job, queue, priority, due_at
""")  # noqa: S608 — constants

#: The first key after {after} that has an unsent run of a job and queue, due or not. If there is no such key after
#: {after}, the first of all such keys, and ``wraps`` is true.
NEXT_KEY = f"""
    SELECT * FROM (
        (SELECT key, false AS wraps FROM rota_runs
         WHERE {IS_UNSENT} AND key <> '' AND queue = {{queue}} AND job = asked.job AND key > {{after}}
         ORDER BY key LIMIT 1)
        UNION ALL
        (SELECT key, true AS wraps FROM rota_runs
         WHERE {IS_UNSENT} AND key <> '' AND queue = {{queue}} AND job = asked.job ORDER BY key LIMIT 1)
    ) AS either LIMIT 1
"""  # noqa: S608 — constants


def keys_in_turn(queue: str, most: str) -> str:
    """Return a query for up to ``most`` keys of the job ``asked.job`` that come after ``asked.after``, each once."""
    return f"""
        WITH RECURSIVE tenant AS (
            SELECT key, wraps, 1 AS number FROM ({NEXT_KEY.format(queue=queue, after="asked.after")}) AS following
            UNION ALL
            SELECT following.key, tenant.wraps OR following.wraps, tenant.number + 1
            FROM tenant CROSS JOIN LATERAL ({NEXT_KEY.format(queue=queue, after="tenant.key")}) AS following
            WHERE tenant.number < {most}
              AND NOT ((tenant.wraps OR following.wraps) AND following.key > asked.after)
              AND NOT (tenant.wraps AND following.wraps)
        )
        SELECT * FROM tenant
    """  # noqa: S608 — constants


#: The condition for a due run of one job and queue that has not been sent.
IS_OF_JOB = f"{IS_UNSENT} AND due_at <= statement_timestamp() AND queue = :queue AND job = asked.job"

#: Takes due runs without a priority. Rows are locked by their id alone. Otherwise, on a table without statistics, a
#: plan might search all unsent runs for them. The statement also returns, for each job with a backlog, the last key
#: that had its turn.
TAKE = text(f"""
    WITH asked AS (
        SELECT * FROM unnest(CAST(:jobs AS text[]), CAST(:afters AS text[])) AS asked (job, after)
    ), oldest AS MATERIALIZED (
        SELECT asked.job, run.id, row_number() OVER (PARTITION BY asked.job ORDER BY run.due_at, run.id) AS place
        FROM asked CROSS JOIN LATERAL (
            SELECT id, due_at FROM (
                SELECT id, due_at, priority FROM rota_runs WHERE {IS_OF_JOB} ORDER BY due_at LIMIT :share + :searched
            ) AS near WHERE priority = 0 LIMIT :share) AS run
    ), backlogged AS MATERIALIZED (
        SELECT * FROM asked WHERE (SELECT count(*) FROM oldest WHERE oldest.job = asked.job) >= :share
    ), tenant AS MATERIALIZED (
        SELECT asked.job, walked.key, walked.number
        FROM backlogged AS asked CROSS JOIN LATERAL ({keys_in_turn(":queue", ":share")}) AS walked
    ), round AS MATERIALIZED (
        SELECT asked.job, count(tenant.key) AS keys,
               CAST(ceil(:share / greatest(count(tenant.key), 1.0)) AS int) AS each
        FROM backlogged AS asked LEFT JOIN tenant USING (job) GROUP BY asked.job
    ), turn AS (
        SELECT asked.job, run.id,
               row_number() OVER (PARTITION BY asked.job, asked.key ORDER BY run.due_at, run.id) AS place
        FROM tenant AS asked JOIN round USING (job) CROSS JOIN LATERAL (
            SELECT id, due_at FROM (
                SELECT id, due_at, priority FROM rota_runs WHERE {IS_OF_JOB} AND key <> '' AND key = asked.key
                ORDER BY due_at LIMIT round.each + :searched
            ) AS near WHERE priority = 0 LIMIT round.each) AS run
        UNION ALL
        SELECT asked.job, run.id, row_number() OVER (PARTITION BY asked.job ORDER BY run.due_at, run.id) AS place
        FROM round AS asked CROSS JOIN LATERAL (
            SELECT id, due_at FROM (
                SELECT id, due_at, key, priority FROM rota_runs WHERE {IS_OF_JOB} ORDER BY due_at LIMIT :searched
            ) AS near WHERE key = '' AND priority = 0 LIMIT asked.each) AS run
        WHERE asked.keys > 0
    ), ranked AS (
        SELECT job, id, min(rank) AS rank FROM (
            SELECT job, id, CASE WHEN place <= ceil(:share / {OLDEST_EVERY}.0) THEN 0 ELSE :share + place END AS rank
            FROM oldest
            UNION ALL SELECT job, id, place FROM turn) AS candidate
        GROUP BY job, id
    ), chosen AS MATERIALIZED (
        SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY job ORDER BY rank, id) AS place FROM ranked) AS each
        WHERE place <= :share
    ), unlocked AS MATERIALIZED (
        SELECT run.id FROM chosen CROSS JOIN LATERAL (
            SELECT id, state, sent_at FROM rota_runs WHERE id = chosen.id LIMIT 1 FOR UPDATE SKIP LOCKED) AS run
        WHERE {IS_UNSENT}
    ), taken AS (
        UPDATE rota_runs SET sent_at = statement_timestamp() WHERE id IN (SELECT id FROM unlocked)
        RETURNING id, job, queue, due_at
    )
    SELECT id, job, queue, due_at, NULL AS reached FROM taken
    UNION ALL
    (SELECT DISTINCT ON (job) NULL, job, NULL, NULL, key FROM tenant ORDER BY job, number DESC)
""")  # noqa: S608 — constants


#: Up to :most keys of each job that have a run to send, due or not. The empty key is returned too if one of the job's
#: oldest runs has no key.
WAITING_TENANTS = text(f"""
    WITH asked AS (SELECT job, '' AS after FROM unnest(CAST(:jobs AS text[])) AS asked (job))
    SELECT asked.job, walked.key FROM asked CROSS JOIN LATERAL ({keys_in_turn(":queue", ":most")}) AS walked
    UNION ALL
    SELECT asked.job, '' FROM asked WHERE EXISTS (
        SELECT 1 FROM (SELECT key FROM rota_runs WHERE {IS_OF_JOB} ORDER BY due_at LIMIT {SEARCHED_OF_JOB}) AS near
        WHERE key = '')
""")  # noqa: S608 — constants
TENANTS = text("SELECT id, job, key FROM rota_runs WHERE id = ANY(CAST(:run_ids AS bigint[]))")


class Due(NamedTuple):
    """A priority of which runs are due, and the jobs of these runs."""

    priority: int
    jobs: list[str]


@dataclass(frozen=True, slots=True)
class Turns:
    """Remembers the keys and jobs that had their turn, for one process or thread that takes runs."""

    #: For each queue and job, the key that had the last turn.
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    #: For each queue, the last job of the last pass, if the pass had no room for all jobs.
    _last: dict[str, str] = field(default_factory=dict)

    def next_jobs(self, queue: str, jobs: Sequence[str], most: int) -> Sequence[str]:
        """Return up to ``most`` of ``jobs``, beginning after the job that had the last turn."""
        if len(jobs) <= most:
            return jobs
        last = self._last.get(queue, "")
        in_turn = sorted(jobs, key=lambda job: (job <= last, job))[:most]
        self._last[queue] = in_turn[-1]
        return in_turn


def due_urgent(connection: Connection, jobs: Collection[str]) -> dict[str, list[Due]]:
    """Return each queue with due and unsent runs of ``jobs`` that have a priority, the highest priority first."""
    found: dict[str, list[Due]] = {}
    for row in connection.execute(DUE_URGENT, {"jobs": list(jobs)}):
        found.setdefault(row.queue, []).append(Due(row.priority, row.jobs))
    return found


def take_urgent(connection: Connection, queue: str, urgent: Due, *, batch: int) -> list[OutgoingRun]:
    """Mark up to ``batch`` due runs of a priority as sent, the oldest first. Return these runs."""
    values = {"queue": queue, "jobs": urgent.jobs, "priority": urgent.priority, "batch": batch}
    rows = connection.execute(TAKE_URGENT, values).all()
    return [OutgoingRun(row.id, row.job, row.queue, row.priority) for row in sorted(rows, key=in_order)]


def take(connection: Connection, queue: str, jobs: Sequence[str], turns: Turns, *, batch: int) -> list[OutgoingRun]:
    """Mark about ``batch`` due runs of ``jobs`` without a priority as sent. Return these runs.

    Each job gets an equal share of the batch, and the keys of a job take turns. ``turns`` has the state of the turns.
    """
    jobs = turns.next_jobs(queue, jobs, batch)
    share = -(-batch // len(jobs))
    afters = [turns.keys.get((queue, job), "") for job in jobs]
    searched = max(SEARCHED // len(jobs), SEARCHED_OF_JOB)
    values = {"queue": queue, "jobs": list(jobs), "afters": afters, "share": share, "searched": searched}
    rows = connection.execute(TAKE, values).all()
    turns.keys.update({(queue, row.job): row.reached for row in rows if row.id is None})
    taken = sorted((row for row in rows if row.id is not None), key=in_order)
    return [OutgoingRun(row.id, row.job, row.queue) for row in taken]


def tenants(connection: Connection, run_ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Return the job and the key of each of these runs that exists."""
    return {row.id: (row.job, row.key) for row in connection.execute(TENANTS, {"run_ids": list(run_ids)})}


def waiting_tenants(connection: Connection, queue: str, jobs: Sequence[str], *, most: int) -> set[tuple[str, str]]:
    """Return up to ``most`` keys of each of ``jobs`` that have a run to send on ``queue``, each with its job."""
    rows = connection.execute(WAITING_TENANTS, {"queue": queue, "jobs": list(jobs), "most": most})
    return {(row.job, row.key) for row in rows}


def in_order(row: Row[Any]) -> tuple[datetime, int]:
    """Return the value by which rows are sorted: the run that came due first comes first."""
    return row.due_at, row.id
