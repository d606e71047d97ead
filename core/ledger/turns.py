"""Turns: runs of one (job, key) that may not overlap start one after another, in the order of their due times.

A run that must wait for another run of its job and key is *parked*: its ``sent_at`` is ``infinity``, so the dispatcher
does not send it and does not count it as lost. Any number of runs can be parked. When a run has ended, its process
wakes the first parked run of the same job and key. If the process cannot do so, the dispatcher wakes the run.

A run that was released uncounted and must rest is parked too: its arguments did not fit (``core/ledger/claims.py``), or
PostgreSQL had no connection for it (``core/ledger/unconnected.py``). It keeps its due time, so it stays before the runs
that were requested later. The dispatcher wakes it after its rest, so a claim need not know of rests.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, text

from core.ledger.carrier import OutgoingRun
from core.ledger.models import IS_BEHIND, IS_WAITING
from core.ledger.unconnected import IS_RESTING


class Turn(NamedTuple):
    """A job and a key."""

    job: str
    key: str


#: The first due run of a job and key, as in the index ``rota_runs_turn``.
FIRST = f"""
    SELECT id, sent_at, waits_for, attempt, reason, error FROM rota_runs
    WHERE job = asked.job AND key = asked.key AND {IS_WAITING} AND (exclusive OR key <> '') AND exclusive
      AND due_at <= statement_timestamp()
    ORDER BY due_at, id LIMIT 1
"""  # noqa: S608 — constants

#: Wakes the first run of each job and key, unless it rests or another run of that job and key is running. The woken run
#: gets the highest priority of the runs that wait behind it. A run that another transaction has locked is left to the
#: next pass of the dispatcher.
WAKE = text(f"""
    WITH asked AS (
        SELECT * FROM unnest(CAST(:jobs AS text[]), CAST(:keys AS text[])) AS asked (job, key)
        UNION
        SELECT job, key FROM rota_runs WHERE id = ANY(CAST(:run_ids AS bigint[]))
    ), first AS MATERIALIZED (
        SELECT run.id, (
            SELECT priority FROM rota_runs WHERE job = asked.job AND key = asked.key AND {IS_BEHIND}
            ORDER BY priority DESC LIMIT 1) AS priority
        FROM asked CROSS JOIN LATERAL ({FIRST}) AS run
        WHERE run.sent_at = 'infinity' AND run.waits_for IS NULL AND NOT {IS_RESTING} AND NOT EXISTS (
            SELECT 1 FROM rota_runs AS rival WHERE rival.job = asked.job AND rival.key = asked.key
              AND rival.state = 'running' AND rival.exclusive)
    ), unlocked AS MATERIALIZED (
        SELECT id FROM rota_runs WHERE id IN (SELECT id FROM first) AND {IS_BEHIND} FOR UPDATE SKIP LOCKED
    )
    UPDATE rota_runs AS run
    SET sent_at = CASE WHEN :carried THEN statement_timestamp() END, priority = greatest(run.priority, first.priority)
    FROM first JOIN unlocked USING (id) WHERE run.id = first.id
    RETURNING run.id, run.job, run.queue, run.priority
""")  # noqa: S608 — constants

#: The jobs and keys with parked runs that come after a given job and key. The query reads one index entry for each.
PARKED_TURNS = text(f"""
    WITH RECURSIVE turn AS (
        (SELECT job, key FROM rota_runs WHERE {IS_BEHIND} AND (job, key) > (:job, :key) ORDER BY job, key LIMIT 1)
        UNION ALL
        SELECT following.* FROM turn CROSS JOIN LATERAL (
            SELECT job, key FROM rota_runs WHERE {IS_BEHIND} AND (job, key) > (turn.job, turn.key)
            ORDER BY job, key LIMIT 1) AS following
    )
    SELECT job, key FROM turn LIMIT :most
""")  # noqa: S608 — constants

#: Ends the parked slots that are older than a given slot of the same job and key.
SUPERSEDE = text("""
    UPDATE rota_runs AS run SET state = 'skipped', reason = 'superseded', finished_at = clock_timestamp()
    FROM rota_runs AS newer
    WHERE newer.id = ANY(CAST(:run_ids AS bigint[])) AND newer.state = 'queued' AND newer.sent_at = 'infinity'
      AND run.job = newer.job AND run.key = newer.key AND run.state = 'queued' AND run.sent_at = 'infinity'
      AND run.slot < newer.slot
    RETURNING run.id, run.job
""")


def wake(
    connection: Connection, ended: Collection[Turn], waiting: Collection[int] = (), *, carried: bool
) -> list[OutgoingRun]:
    """Wake the first parked run for each job and key in ``ended``, and for the job and key of each of the runs
    ``waiting``. Return the woken runs.

    A run is not woken while it rests or another run of its job and key is running. ``carried`` is whether the caller
    sends the messages.
    """
    asked = {"jobs": [turn.job for turn in ended], "keys": [turn.key for turn in ended], "run_ids": list(waiting)}
    return [OutgoingRun(*row) for row in connection.execute(WAKE, {**asked, "carried": carried})]


def parked(connection: Connection, after: Turn, most: int) -> Sequence[Turn]:
    """Return up to ``most`` pairs of job and key that have parked runs, in order, beginning after ``after``."""
    rows = connection.execute(PARKED_TURNS, {"job": after.job, "key": after.key, "most": most})
    return [Turn(*row) for row in rows]


def supersede(connection: Connection, newer: Collection[int]) -> list[tuple[int, str]]:
    """End the parked slots that are older than the parked slots ``newer``. Return each ended run with its job."""
    return [(row.id, row.job) for row in connection.execute(SUPERSEDE, {"run_ids": list(newer)})]
