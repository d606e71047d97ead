"""Which runs are due and not on their way to a worker.

The waiting runs of one queue and one job are a *lane*. A partial index begins with queue and job, so one look for each
lane tells whether it has anything due, however many runs wait in it or in the others: a backlog, a pause or a job that
is not loaded hides no other lane.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, text

from core.ledger.carrier import OutgoingRun

IS_UNSENT = "state IN ('queued', 'retrying') AND sent_at IS NULL"
#: A stable time here and below, so that an index leads to what is due, past all that is not.
IS_DUE = f"{IS_UNSENT} AND due_at <= statement_timestamp()"
IS_SENT = "state IN ('queued', 'retrying') AND sent_at IS NOT NULL"

#: Rows that are updated in one statement.
BATCH = 1000


def lanes(condition: str, instant: str) -> str:
    """A recursive query for each lane of the runs that meet ``condition``, with its least ``instant`` as ``first_at``.

    It looks at one entry of the index for each lane.
    """
    return f"""
        WITH RECURSIVE lane AS (
            (SELECT queue, job, {instant} AS first_at FROM rota_runs WHERE {condition}
             ORDER BY queue, job, {instant} LIMIT 1)
            UNION ALL
            SELECT following.* FROM lane CROSS JOIN LATERAL (
                SELECT queue, job, {instant} FROM rota_runs WHERE {condition} AND (queue, job) > (lane.queue, lane.job)
                ORDER BY queue, job, {instant} LIMIT 1) AS following
        )
        SELECT queue, job, first_at FROM lane
    """  # noqa: S608 — constants


UNSENT_LANES = lanes(IS_UNSENT, "due_at")
SENT_LANES = lanes(IS_SENT, "sent_at")

IS_ANY_DUE = f"EXISTS (SELECT 1 FROM ({UNSENT_LANES}) AS lane WHERE first_at <= statement_timestamp())"  # noqa: S608

ANY_DUE = text(f"SELECT {IS_ANY_DUE}")

#: The queues with due runs, each with the jobs that they are of; the queue that has waited longest comes first.
DUE_LANES = text(f"""
    SELECT queue, array_agg(job) AS jobs FROM ({UNSENT_LANES}) AS lane
    WHERE first_at <= statement_timestamp() AND job = ANY(:jobs)
    GROUP BY queue ORDER BY min(first_at), queue
""")  # noqa: S608 — constants

#: Of one queue, as many of each job.
TAKE_DUE = text(f"""
    WITH batch AS MATERIALIZED (
        SELECT run.id FROM unnest(CAST(:jobs AS text[])) AS wanted (job) CROSS JOIN LATERAL (
            SELECT id FROM rota_runs WHERE {IS_DUE} AND queue = :queue AND job = wanted.job
            ORDER BY due_at LIMIT :share FOR UPDATE SKIP LOCKED) AS run
    )
    UPDATE rota_runs SET sent_at = statement_timestamp() WHERE id IN (SELECT id FROM batch)
    RETURNING id, job, queue, due_at
""")  # noqa: S608 — a constant

#: The same for the threads of one process, of its queues alone. What was sent before ``began`` counts as lost, and so
#: does what nobody claimed for a while.
TAKE_DIRECT = text(f"""
    WITH unsent AS MATERIALIZED (
        SELECT run.* FROM ({UNSENT_LANES}) AS lane CROSS JOIN LATERAL (
            SELECT id, due_at FROM rota_runs
            WHERE {IS_UNSENT} AND due_at <= statement_timestamp() AND queue = lane.queue AND job = lane.job
            ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED) AS run
        WHERE lane.job = ANY(:jobs) AND lane.queue = ANY(:queues) AND lane.first_at <= statement_timestamp()
    ), lost AS MATERIALIZED (
        SELECT run.* FROM ({SENT_LANES}) AS lane CROSS JOIN LATERAL (
            SELECT id, due_at FROM rota_runs
            WHERE {IS_SENT} AND due_at <= statement_timestamp() AND queue = lane.queue AND job = lane.job
              AND sent_at < greatest(:began, statement_timestamp() - CAST(:age AS interval))
            ORDER BY sent_at LIMIT :most FOR UPDATE SKIP LOCKED) AS run
        WHERE lane.job = ANY(:jobs) AND lane.queue = ANY(:queues)
    ), due AS (
        SELECT id FROM (SELECT * FROM unsent UNION ALL SELECT * FROM lost) AS either ORDER BY due_at, id LIMIT :most
    )
    UPDATE rota_runs AS run SET sent_at = statement_timestamp() FROM due WHERE run.id = due.id
    RETURNING run.id, run.job, run.queue, run.due_at
""")  # noqa: S608 — constants

RELEASE = text("""
    UPDATE rota_runs SET sent_at = NULL WHERE id = ANY(:run_ids) AND state IN ('queued', 'retrying')
""")

#: Lanes with messages that were sent a while ago and have not been claimed.
OVERDUE_LANES = text(f"""
    SELECT queue, array_agg(job) AS jobs FROM ({SENT_LANES}) AS lane
    WHERE first_at < statement_timestamp() - CAST(:age AS interval)
    GROUP BY queue
""")  # noqa: S608 — constants

#: Of those, what was sent before the oldest message that still waits on the queue; all, if none waits. The runs of
#: messages at the head of the queue may be over by hand and no longer marked as sent, or of no run that is here;
#: nothing that was sent since is lost for it.
FORGET_SENT = text(f"""
    WITH oldest AS MATERIALIZED (
        SELECT min(coalesce(sent_at, queued_at)) AS sent_at FROM rota_runs
        WHERE id = ANY(CAST(:waiting AS bigint[])) AND queue = :queue
    ), lost AS MATERIALIZED (
        SELECT run.id FROM oldest, unnest(CAST(:jobs AS text[])) AS lane (job) CROSS JOIN LATERAL (
            SELECT id FROM rota_runs
            WHERE {IS_SENT} AND queue = :queue AND job = lane.job AND sent_at < least(
                statement_timestamp() - CAST(:age AS interval),
                CASE WHEN cardinality(CAST(:waiting AS bigint[])) = 0 THEN 'infinity'
                     ELSE coalesce(oldest.sent_at, '-infinity') END)
            ORDER BY sent_at LIMIT :batch FOR UPDATE SKIP LOCKED) AS run
    )
    UPDATE rota_runs SET sent_at = NULL WHERE id IN (SELECT id FROM lost) AND {IS_SENT}
    RETURNING id
""")  # noqa: S608 — a constant

#: Of a queue that no job uses any more.
MOVE = text(f"""
    WITH batch AS MATERIALIZED (
        SELECT run.id, present.queue
        FROM unnest(CAST(:jobs AS text[]), CAST(:queues AS text[])) AS present (job, queue) CROSS JOIN LATERAL (
            (SELECT id FROM rota_runs WHERE {IS_UNSENT} AND queue = :queue AND job = present.job LIMIT :batch)
            UNION ALL
            (SELECT id FROM rota_runs WHERE {IS_SENT} AND queue = :queue AND job = present.job LIMIT :batch)) AS run
        LIMIT :batch
    )
    UPDATE rota_runs AS run SET queue = batch.queue, sent_at = NULL FROM batch
    WHERE run.id = batch.id AND run.queue = :queue AND run.state IN ('queued', 'retrying')
""")  # noqa: S608 — constants


def is_any_due(connection: Connection) -> bool:
    """Whether a run of any job is due and not on its way."""
    return bool(connection.execute(ANY_DUE).scalar_one())


def due_lanes(connection: Connection, jobs: Iterable[str]) -> dict[str, list[str]]:
    """Each queue on which runs of ``jobs`` are due and not on their way, with those jobs."""
    return {row.queue: row.jobs for row in connection.execute(DUE_LANES, {"jobs": list(jobs)})}


def take_due(connection: Connection, queue: str, jobs: Sequence[str], *, batch: int) -> list[OutgoingRun]:
    """Mark about ``batch`` due runs of ``jobs`` on ``queue`` as sent, as many of each job, and return them for sending.

    Of each job those come first that were due first.
    """
    share = -(-batch // len(jobs))
    rows = connection.execute(TAKE_DUE, {"queue": queue, "jobs": list(jobs), "share": share}).all()
    in_order = sorted(rows, key=lambda row: (row.due_at, row.id))
    return [OutgoingRun(row.id, row.job, row.queue) for row in in_order]


def take_direct(
    connection: Connection,
    jobs: Iterable[str],
    queues: Iterable[str],
    *,
    most: int,
    began: datetime,
    resend_seconds: float,
) -> list[OutgoingRun]:
    """Mark up to ``most`` due runs of ``jobs`` on ``queues`` as taken, those first that were due first; return them.

    ``began`` is since when nothing is sent any more, by the database's clock.
    """
    parameters = {"jobs": list(jobs), "queues": list(queues), "most": most, "began": began}
    rows = connection.execute(TAKE_DIRECT, {**parameters, "age": f"{resend_seconds} seconds"}).all()
    in_order = sorted(rows, key=lambda row: (row.due_at, row.id))
    return [OutgoingRun(row.id, row.job, row.queue) for row in in_order]


def release(connection: Connection, outgoing: Iterable[OutgoingRun]) -> None:
    """These could not be sent after all."""
    connection.execute(RELEASE, {"run_ids": [each.run_id for each in outgoing]})


def overdue_lanes(connection: Connection, age_seconds: float) -> dict[str, list[str]]:
    """Each queue with runs that were sent ``age_seconds`` ago or earlier and are not claimed, with their jobs."""
    return {row.queue: row.jobs for row in connection.execute(OVERDUE_LANES, {"age": f"{age_seconds} seconds"})}


def forget_sent(
    connection: Connection,
    queue: str,
    jobs: Sequence[str],
    *,
    waiting: Collection[int],
    age_seconds: float,
    batch: int | None = None,
) -> int:
    """Have up to ``batch`` runs of each of ``jobs`` that are no longer on ``queue`` sent again; return how many.

    ``waiting`` are the runs whose messages are next on the queue: what was sent before them has left the queue, and
    was lost or lies in the memory of a busy worker. Sending it twice does no harm: only one claim succeeds.
    """
    parameters = {"queue": queue, "jobs": list(jobs), "waiting": list(waiting), "batch": batch or BATCH}
    return len(connection.execute(FORGET_SENT, {**parameters, "age": f"{age_seconds} seconds"}).all())


def move(connection: Connection, queue: str, present: Mapping[str, str], *, batch: int = BATCH) -> int:
    """Have up to ``batch`` runs that wait on ``queue`` for jobs that are on another now, ``present``, sent there.

    Returns how many.
    """
    parameters = {"queue": queue, "jobs": list(present), "queues": list(present.values()), "batch": batch}
    return connection.execute(MOVE, parameters).rowcount
