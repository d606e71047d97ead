"""Releases runs for which PostgreSQL had no connection. Such an attempt does not count.

The run is tried again after a rest. A run that may not overlap keeps its place among the runs of its key: its due time
stays as it is, and it is parked until its rest is over (``core/ledger/turns.py``). Any other run becomes due later.
"""

from sqlalchemy import Connection

from core.ledger import attempts
from core.ledger.leases import LEASE_IS_GOOD, Lease
from core.ledger.prepared import Prepared
from core.ledger.runs import LONGEST_ERROR

REASON = "no connection"
#: If all attempts of a run have failed to get a connection to PostgreSQL for this long, the run is dead.
TRIED_FOR = "1 hour"
#: A run without a connection rests for half the time for which it has had none, within these bounds.
RESTS = ("1 second", "1 minute")
#: The error begins with this text and a time in UTC. When the run is released again, this time tells for how long it
#: has had no connection.
SINCE = "no connection since "
#: Whether an error begins with ``SINCE`` and a time, in SQL.
HAS_SINCE = rf"{{}}error ~ '^{SINCE}\d{{{{4}}}}-\d\d-\d\dT\d\d:\d\d:\d\dZ: '"
#: The time at the beginning of such an error, in SQL.
SINCE_OF = f"CAST(substr({{}}error, {len(SINCE) + 1}, 20) AS timestamptz)"


def rest(lasted: str) -> str:
    """Return the rest of a run for which there was no connection for the time ``lasted``, an SQL expression."""
    return f"greatest(interval '{RESTS[0]}', least(interval '{RESTS[1]}', ({lasted}) / 2))"


#: Whether ``run`` was released for this reason and still rests. The released attempt is kept under the number of the
#: next attempt (``core/ledger/attempts.py``).
IS_RESTING = f"""
    CASE WHEN run.reason = '{REASON}' AND {HAS_SINCE.format("run.")} THEN EXISTS (
        SELECT 1 FROM rota_attempts AS released
        WHERE released.run_id = run.id AND released.attempt = run.attempt + 1
          AND clock_timestamp() < released.ended_at + {rest(f"released.ended_at - {SINCE_OF.format('run.')}")})
    ELSE false END
"""  # noqa: S608 — constants

#: Parameters: the run, its token, the process, the error. Restores the run as it was before the claim. A claim keeps
#: the error, and every other change of a run writes another error. If a run has since waited long for another reason,
#: such as a pause, the time without a connection begins again.
RELEASE = Prepared(
    "rota_release_unconnected",
    ("bigint", "bigint", "bigint", "text"),
    f"""
    WITH released AS MATERIALIZED (
        SELECT id, greatest(retried_at, CASE
            WHEN {HAS_SINCE.format("")} AND started_at < interval '{TRIED_FOR}' + greatest(due_at, (
                SELECT ended_at FROM rota_attempts AS former
                WHERE former.run_id = run.id AND former.attempt = run.attempt))
            THEN {SINCE_OF.format("")}
            ELSE date_trunc('second', started_at) END) AS since
        FROM rota_runs AS run WHERE {LEASE_IS_GOOD} FOR UPDATE
    ), judged AS MATERIALIZED (
        SELECT id, since, clock_timestamp() - since AS lasted,
               clock_timestamp() - since >= interval '{TRIED_FOR}' AS is_over FROM released
    ), ended AS MATERIALIZED (
        UPDATE rota_runs AS run
        SET state = CASE WHEN is_over THEN 'dead' ELSE 'retrying' END, reason = '{REASON}',
            error = left('{SINCE}' || to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z: "') || $4,
                         {LONGEST_ERROR}),
            attempt = attempt - 1, token = NULL, process_id = NULL,
            sent_at = CASE WHEN exclusive AND NOT is_over THEN 'infinity'::timestamptz END,
            due_at = CASE WHEN exclusive OR is_over THEN due_at ELSE clock_timestamp() + {rest("lasted")} END,
            finished_at = CASE WHEN is_over THEN clock_timestamp() END
        FROM judged WHERE run.id = judged.id
        RETURNING run.id, run.attempt + 1 AS attempt, run.started_at, run.worker, run.reason, run.error, run.state
    ), {attempts.keeping("ended", "released")}
    SELECT state FROM ended
    """,  # noqa: S608 — constants
)


def release(connection: Connection, lease: Lease, error: str) -> str | None:
    """Release a run, uncounted, if PostgreSQL had no connection for its attempt. Return the run's new state.

    The state is ``retrying``, or ``dead`` if there was no connection for an hour. Return None if the lease is lost.
    """
    rows = RELEASE.rows(connection, lease.run_id, lease.token, lease.process_id, error)
    return str(rows[0][0]) if rows else None
