"""A function can raise Later to postpone its run. A postponement is not a failure. It is counted separately, and
limited in time.

The run waits until its new due time. A slot that has neither failed nor crashed is ``queued`` again, so it is missed
when its grace ends. Its reason ``later`` tells the misfire policies that a worker has tried the slot. Every other run
is ``retrying``.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from core.errors import LONGEST_LATER
from core.ledger import attempts
from core.ledger.attempts import ENDED
from core.ledger.leases import LEASE_IS_GOOD, Lease
from core.ledger.models import State
from core.ledger.prepared import Prepared

#: The ledger stores at most this many characters of a reason.
LONGEST_REASON = 2000

#: Parameters: the run, its token, the process, the new due time or null, the span until the due time or null, the error
#: to record, the longest time between the first postponement and the last due time, the end of the attempt's log.
POSTPONE = Prepared(
    "rota_postpone",
    ("bigint", "bigint", "bigint", "timestamptz", "interval", "text", "interval", "text"),
    f"""
    WITH held AS MATERIALIZED (
        SELECT id, coalesce($4, statement_timestamp() + $5) AS then_at,
               coalesce(later_since, statement_timestamp()) AS since, expires_at
        FROM rota_runs AS run WHERE {LEASE_IS_GOOD} FOR UPDATE
    ), judged AS MATERIALIZED (
        SELECT id, then_at, since, then_at > least(since + $7, expires_at) AS is_over FROM held
    ), ended AS MATERIALIZED (
        UPDATE rota_runs AS run
        SET state = CASE WHEN is_over THEN 'dead'
                         WHEN slot IS NOT NULL AND failures = 0 AND crashes = 0 THEN 'queued' ELSE 'retrying' END,
            reason = 'later', error = $6, laters = coalesce(laters, 0) + 1, later_since = since,
            process_id = NULL, sent_at = NULL, due_at = CASE WHEN is_over THEN due_at ELSE then_at END,
            finished_at = CASE WHEN is_over THEN clock_timestamp() END
        FROM judged WHERE run.id = judged.id
        RETURNING {ENDED}, run.state, then_at, run.laters
    ), {attempts.keeping("ended", "later", log="$8")}
    SELECT state, then_at, laters FROM ended
    """,  # noqa: S608 — constants
)


@dataclass(frozen=True, slots=True)
class Postponed:
    """A run that its function has postponed: the run's state, the time that the function asked for, and the number of
    postponements.
    """

    state: State
    until: datetime
    laters: int


def postpone(
    connection: Connection, lease: Lease, *, at: datetime | None, after: timedelta | None, error: str,
    log: str | None = None,
) -> Postponed | None:  # fmt: skip
    """Postpone a run until ``at``, or by the span ``after``. Return None if the lease is lost.

    ``log`` is the end of the attempt's log. It is kept with the attempt.

    If the new due time is more than 7 days after the run was first postponed, or after its ``expires_at``, the run is
    dead.
    """
    values = (at, after, error[:LONGEST_REASON], LONGEST_LATER, log)
    rows = POSTPONE.rows(connection, lease.run_id, lease.token, lease.process_id, *values)
    return Postponed(State(rows[0][0]), rows[0][1], rows[0][2]) if rows else None
