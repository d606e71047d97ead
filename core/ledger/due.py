"""Finds runs that are due and have not been sent to a worker, and runs whose messages are lost.

The waiting runs of one queue and one job are a *lane*. A partial index begins with queue and job, so one index lookup
per lane finds the lane's first due run, however many runs are waiting. So a backlog, a pause or a job that is not
loaded does not slow down or hide other lanes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import Connection, text

from core.ledger.carrier import OutgoingRun
from core.ledger.models import IS_SENT, IS_UNSENT, IS_URGENT_SENT

#: The most rows that one statement updates.
BATCH = 1000


def lanes(condition: str, instant: str, *columns: str) -> str:
    """Return a recursive query for the lanes of the runs that meet ``condition``, each with its first ``instant``.

    The query reads one index entry per lane, and returns the entry's ``instant`` as ``first_at``. With ``columns``,
    runs that differ in these columns are in different lanes.
    """
    lane = ", ".join(["queue", "job", *columns])
    former = ", ".join(f"lane.{column}" for column in ["queue", "job", *columns])
    return f"""
        WITH RECURSIVE lane AS (
            (SELECT {lane}, {instant} AS first_at FROM rota_runs WHERE {condition} ORDER BY {lane}, {instant} LIMIT 1)
            UNION ALL
            SELECT following.* FROM lane CROSS JOIN LATERAL (
                SELECT {lane}, {instant} FROM rota_runs WHERE {condition} AND ({lane}) > ({former})
                ORDER BY {lane}, {instant} LIMIT 1) AS following
        )
        SELECT {lane}, first_at FROM lane
    """  # noqa: S608 — constants


UNSENT_LANES = lanes(IS_UNSENT, "due_at")
SENT_LANES = lanes(IS_SENT, "sent_at")
URGENT_SENT_LANES = lanes(IS_URGENT_SENT, "sent_at", "priority")

IS_ANY_DUE = f"EXISTS (SELECT 1 FROM ({UNSENT_LANES}) AS lane WHERE first_at <= statement_timestamp())"  # noqa: S608

ANY_DUE = text(f"SELECT {IS_ANY_DUE}")

#: The queues with due runs, each with the jobs of these runs. The queue with the oldest due run comes first.
DUE_LANES = text(f"""
    SELECT queue, array_agg(job) AS jobs FROM ({UNSENT_LANES}) AS lane
    WHERE first_at <= statement_timestamp() AND job = ANY(:jobs)
    GROUP BY queue ORDER BY min(first_at), queue
""")  # noqa: S608 — constants

RELEASE = text("""
    UPDATE rota_runs SET sent_at = NULL WHERE id IN (
        SELECT id FROM rota_runs WHERE id = ANY(:run_ids) AND state IN ('queued', 'retrying') FOR UPDATE SKIP LOCKED)
""")

#: Marks sent runs as unsent, except the runs that another transaction has locked. Returns these locked runs.
RELEASE_UNLOCKED = text(f"""
    WITH unlocked AS MATERIALIZED (
        SELECT run.id FROM unnest(CAST(:run_ids AS bigint[])) AS asked (id) CROSS JOIN LATERAL (
            SELECT id, state, sent_at FROM rota_runs WHERE id = asked.id LIMIT 1 FOR UPDATE SKIP LOCKED) AS run
        WHERE {IS_SENT} AND sent_at < 'infinity'
    ), released AS (
        UPDATE rota_runs SET sent_at = NULL WHERE id IN (SELECT id FROM unlocked)
    )
    SELECT run.id FROM unnest(CAST(:run_ids AS bigint[])) AS asked (id) CROSS JOIN LATERAL (
        SELECT id, state, sent_at FROM rota_runs WHERE id = asked.id LIMIT 1) AS run
    WHERE {IS_SENT} AND sent_at < 'infinity' AND run.id NOT IN (SELECT id FROM unlocked)
""")  # noqa: S608 — constants

#: The lanes with runs that were sent a while ago and have not been claimed.
OVERDUE_LANES = text(f"""
    SELECT queue, array_agg(job) AS jobs FROM ({SENT_LANES}) AS lane
    WHERE first_at < statement_timestamp() - CAST(:age AS interval)
    GROUP BY queue
""")  # noqa: S608 — constants

#: The lanes of each priority above 0 with runs that were sent a while ago and have not been claimed.
OVERDUE_URGENT_LANES = text(f"""
    SELECT queue, priority, array_agg(job) AS jobs FROM ({URGENT_SENT_LANES}) AS lane
    WHERE first_at < statement_timestamp() - CAST(:age AS interval)
    GROUP BY queue, priority
""")  # noqa: S608 — constants

#: Whether a queue has workers, and all of them are of the previous release, which does not fetch urgent messages.
IS_SERVED_BY_FORMER = text("""
    SELECT coalesce(bool_and(threads IS NULL), false) FROM rota_processes
    WHERE kind = 'worker' AND expires_at > clock_timestamp() AND :queue = ANY(queues)
""")

#: Marks overdue runs of a priority as unsent: the runs that were sent before the oldest message of this priority on the
#: queue, or all runs if the queue has no such message. The first messages may belong to runs that are over or deleted.
#: Then ``queued_at`` or ``-infinity`` is compared instead, so that no run that was sent later counts as lost.
FORGET_SENT = """
    WITH oldest AS MATERIALIZED (
        SELECT min(coalesce(sent_at, queued_at)) AS sent_at FROM rota_runs
        WHERE id = ANY(CAST(:waiting AS bigint[])) AND queue = :queue
    ), lost AS MATERIALIZED (
        SELECT run.id FROM oldest, unnest(CAST(:jobs AS text[])) AS lane (job) CROSS JOIN LATERAL (
            SELECT id FROM rota_runs
            WHERE {condition} AND queue = :queue AND job = lane.job AND priority = :priority AND sent_at < least(
                statement_timestamp() - CAST(:age AS interval),
                CASE WHEN cardinality(CAST(:waiting AS bigint[])) = 0 THEN 'infinity'
                     ELSE coalesce(oldest.sent_at, '-infinity') END)
            ORDER BY sent_at LIMIT :batch FOR UPDATE SKIP LOCKED) AS run
    )
    UPDATE rota_runs SET sent_at = NULL WHERE id IN (SELECT id FROM lost) AND {condition}
    RETURNING id
"""
FORGET_ORDINARY_SENT = text(FORGET_SENT.format(condition=IS_SENT))
FORGET_URGENT_SENT = text(FORGET_SENT.format(condition=IS_URGENT_SENT))

#: Moves waiting runs from a queue that no job uses any more.
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
    WHERE run.id = batch.id AND run.id IN (
        SELECT id FROM rota_runs WHERE id IN (SELECT id FROM batch) AND queue = :queue
          AND state IN ('queued', 'retrying') FOR UPDATE SKIP LOCKED)
""")  # noqa: S608 — constants


def is_any_due(connection: Connection) -> bool:
    """Return whether any job has a run that is due and not sent."""
    return bool(connection.execute(ANY_DUE).scalar_one())


def due_lanes(connection: Connection, jobs: Iterable[str]) -> dict[str, list[str]]:
    """Return each queue on which runs of ``jobs`` are due and not sent, with the jobs of these runs."""
    return {row.queue: row.jobs for row in connection.execute(DUE_LANES, {"jobs": list(jobs)})}


def release(connection: Connection, outgoing: Iterable[OutgoingRun]) -> None:
    """Mark runs that could not be sent as unsent. A locked run stays marked as sent, and later counts as lost."""
    connection.execute(RELEASE, {"run_ids": [each.run_id for each in outgoing]})


def release_unlocked(connection: Connection, run_ids: Collection[int]) -> list[int]:
    """Mark sent runs as unsent, except the runs that another transaction has locked. Return these locked runs."""
    return list(connection.execute(RELEASE_UNLOCKED, {"run_ids": list(run_ids)}).scalars())


def overdue_lanes(connection: Connection, age_seconds: float) -> dict[str, list[str]]:
    """Return each queue with runs that were sent at least ``age_seconds`` ago and not claimed, with the jobs of these
    runs.
    """
    return {row.queue: row.jobs for row in connection.execute(OVERDUE_LANES, {"age": f"{age_seconds} seconds"})}


def overdue_urgent_lanes(connection: Connection, age_seconds: float) -> dict[tuple[str, int], list[str]]:
    """Return the same as ``overdue_lanes``, for each queue and each priority above 0."""
    rows = connection.execute(OVERDUE_URGENT_LANES, {"age": f"{age_seconds} seconds"})
    return {(row.queue, row.priority): row.jobs for row in rows}


def is_served_by_former(connection: Connection, queue: str) -> bool:
    """Return whether all workers of ``queue`` are of the previous release, which does not fetch urgent messages.

    Return False if the queue has no workers.
    """
    return bool(connection.execute(IS_SERVED_BY_FORMER, {"queue": queue}).scalar_one())


def forget_sent(
    connection: Connection,
    queue: str,
    jobs: Sequence[str],
    *,
    waiting: Collection[int],
    age_seconds: float,
    priority: int = 0,
    batch: int | None = None,
) -> int:
    """Mark sent runs of ``jobs`` as unsent if their messages are no longer on ``queue``, up to ``batch`` runs of each
    job.

    Return how many.

    Only runs of ``priority`` are marked, since messages of different priorities do not leave the queue in the order in
    which they were sent. ``waiting`` are the runs of the next messages of this priority on the queue. Runs that were
    sent before these have left the queue: their messages were lost, or are in a busy worker's memory. Sending a run
    twice does no harm, since only one claim succeeds.
    """
    parameters = {"queue": queue, "jobs": list(jobs), "waiting": list(waiting), "batch": batch or BATCH}
    parameters |= {"priority": priority}
    forget = FORGET_URGENT_SENT if priority else FORGET_ORDINARY_SENT
    return len(connection.execute(forget, {**parameters, "age": f"{age_seconds} seconds"}).all())


def move(connection: Connection, queue: str, present: Mapping[str, str], *, batch: int = BATCH) -> int:
    """Move up to ``batch`` waiting runs from ``queue`` to ``present``, the queues that their jobs have now.

    Return how many runs were moved.
    """
    parameters = {"queue": queue, "jobs": list(present), "queues": list(present.values()), "batch": batch}
    return connection.execute(MOVE, parameters).rowcount
