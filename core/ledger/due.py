"""Which runs are due and not on their way to a worker."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from sqlalchemy import Connection, text

from core.ledger.carrier import OutgoingRun

IS_UNSENT = "state IN ('queued', 'retrying') AND sent_at IS NULL"
#: A stable time here and below, so that an index leads to what is due, past all that is not.
IS_DUE = f"{IS_UNSENT} AND due_at <= statement_timestamp()"
IS_SENT = "state IN ('queued', 'retrying') AND sent_at IS NOT NULL"

ANY_DUE = text(f"SELECT EXISTS (SELECT 1 FROM rota_runs WHERE {IS_DUE})")  # noqa: S608 — a constant

TAKE_DUE = text(f"""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_runs
        WHERE {IS_DUE} AND job = ANY(:jobs)
        ORDER BY due_at LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    UPDATE rota_runs SET sent_at = statement_timestamp() WHERE id IN (SELECT id FROM batch)
    RETURNING id, job, queue, due_at
""")  # noqa: S608 — a constant

#: The same for the threads of one process, of its queues alone. What was sent before ``began`` counts as lost, and so
#: does what nobody claimed for a while.
TAKE_DIRECT = text("""
    WITH unsent AS MATERIALIZED (
        SELECT id, due_at FROM rota_runs
        WHERE state IN ('queued', 'retrying') AND sent_at IS NULL AND due_at <= statement_timestamp()
          AND job = ANY(:jobs) AND queue = ANY(:queues)
        ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED
    ), lost AS MATERIALIZED (
        SELECT id, due_at FROM rota_runs
        WHERE state IN ('queued', 'retrying') AND due_at <= statement_timestamp()
          AND sent_at < greatest(:began, statement_timestamp() - CAST(:age AS interval))
          AND job = ANY(:jobs) AND queue = ANY(:queues)
        ORDER BY sent_at LIMIT :most FOR UPDATE SKIP LOCKED
    ), due AS (
        SELECT id FROM (SELECT * FROM unsent UNION ALL SELECT * FROM lost) AS either ORDER BY due_at, id LIMIT :most
    )
    UPDATE rota_runs AS run SET sent_at = statement_timestamp() FROM due WHERE run.id = due.id
    RETURNING run.id, run.job, run.queue, run.due_at
""")

RELEASE = text("""
    UPDATE rota_runs SET sent_at = NULL WHERE id = ANY(:run_ids) AND state IN ('queued', 'retrying')
""")

#: Queues with messages that were sent a while ago and have not been claimed.
OVERDUE_QUEUES = text(f"""
    SELECT DISTINCT queue FROM rota_runs WHERE {IS_SENT} AND sent_at < statement_timestamp() - CAST(:age AS interval)
""")  # noqa: S608 — a constant

#: Of those, what was sent before the oldest message that still waits on the queue; all, if none waits. That message's
#: run may be over by hand and no longer marked as sent, or gone; nothing that was sent since is lost for it.
FORGET_SENT = text("""
    UPDATE rota_runs SET sent_at = NULL
    WHERE state IN ('queued', 'retrying') AND queue = :queue
      AND sent_at < statement_timestamp() - CAST(:age AS interval)
      AND sent_at < CASE WHEN CAST(:oldest_waiting AS bigint) IS NULL THEN statement_timestamp()
          ELSE (SELECT coalesce(sent_at, queued_at) FROM rota_runs WHERE id = :oldest_waiting) END
    RETURNING id
""")


#: Of a queue that no job uses any more.
MOVE = text("""
    UPDATE rota_runs AS run SET queue = present.queue, sent_at = NULL
    FROM unnest(CAST(:jobs AS text[]), CAST(:queues AS text[])) AS present (job, queue)
    WHERE run.job = present.job AND run.queue = :queue AND run.state IN ('queued', 'retrying')
""")


def is_any_due(connection: Connection) -> bool:
    """Whether a run of any job is due and not on its way."""
    return bool(connection.execute(ANY_DUE).scalar_one())


def take_due(connection: Connection, jobs: Iterable[str], *, batch: int) -> list[OutgoingRun]:
    """Mark up to ``batch`` due runs of ``jobs`` as sent, oldest first, and return them for sending."""
    rows = connection.execute(TAKE_DUE, {"jobs": list(jobs), "batch": batch}).all()
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


def overdue_queues(connection: Connection, age_seconds: float) -> list[str]:
    """The queues on which something sent longer ago than ``age_seconds`` has not been claimed."""
    return list(connection.execute(OVERDUE_QUEUES, {"age": f"{age_seconds} seconds"}).scalars())


def forget_sent(connection: Connection, queue: str, *, oldest_waiting: int | None, age_seconds: float) -> int:
    """Have what is no longer on ``queue`` sent again; return how many runs.

    ``oldest_waiting`` is the run whose message is next on the queue: what was sent before it has left the queue, and
    was lost or lies in the memory of a busy worker. Sending it twice does no harm: only one claim succeeds.
    """
    parameters = {"queue": queue, "oldest_waiting": oldest_waiting, "age": f"{age_seconds} seconds"}
    return len(connection.execute(FORGET_SENT, parameters).all())


def move(connection: Connection, queue: str, present: Mapping[str, str]) -> int:
    """Have what waits on ``queue`` for jobs that are on another now, ``present``, sent there; return how many runs."""
    parameters = {"queue": queue, "jobs": list(present), "queues": list(present.values())}
    return connection.execute(MOVE, parameters).rowcount
