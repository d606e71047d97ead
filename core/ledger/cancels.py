"""Cancellations: a waiting run ends at once. A running run can no longer commit, and ends when its function has
returned.

A cancel does not end a running run, since only the run's process knows when the function has returned. The cancel draws
a new fencing token for the run's row, and writes the former token to ``rota_cancels`` as a mark. Every commit of the
attempt checks its token under the row's lock, in every isolation level, so each later commit is refused. Runs that are
not cancelled need no further statement. The row keeps its state and its process, so the run holds its key and its
limits as long as its function may be running.

The process is notified, and also looks for marks at every heartbeat (``core/worker/heartbeat.py``). It interrupts the
attempt, and ends the run when the function has returned. If the run is released or recovered, or fails, a trigger ends
the run and deletes the mark, so that the run never starts again. The trigger also handles statements of an older
release.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from core.ledger import attempts
from core.ledger.attempts import ENDED
from core.ledger.leases import Lease
from core.ledger.models import WAITING, State
from core.ledger.prepared import Prepared

CANCELLED = "cancelled"
CANCELLABLE = (*WAITING, State.RUNNING)
#: The channel of a process has this name, followed by the process's id.
CHANNEL = "rota_cancel_"

#: Parameters: the runs, the person or job that cancels, the reason. The rows are locked in the order of their ids. If a
#: run is cancelled again before it has ended, the first mark and the run's token do not change.
CANCEL = Prepared(
    "rota_cancel",
    ("bigint[]", "text", "text"),
    f"""
    WITH chosen AS MATERIALIZED (
        SELECT id, state, reason, token, process_id FROM ledger.rota_runs
        WHERE id = ANY($1) AND state IN ('queued', 'retrying', 'running') ORDER BY id FOR UPDATE
    ), marked AS (
        INSERT INTO ledger.rota_cancels (run_id, token, process_id, asked_by, reason)
        SELECT id, token, process_id, $2, $3 FROM chosen WHERE state = 'running'
        ON CONFLICT (run_id) DO NOTHING RETURNING run_id, pg_notify('{CHANNEL}' || process_id, '')
    ), drawn AS MATERIALIZED (
        SELECT run_id, nextval('ledger.rota_tokens') AS token FROM marked
    ), fenced AS (
        UPDATE ledger.rota_runs AS run
        SET token = drawn.token, limits_token = CASE WHEN limits IS NOT NULL THEN drawn.token END
        FROM drawn WHERE run.id = drawn.run_id RETURNING run.id
    ), ended AS (
        UPDATE ledger.rota_runs AS run SET
            former_state = chosen.state, former_reason = chosen.reason, state = 'dead', reason = '{CANCELLED}',
            error = left(concat_ws(': ', 'by ' || $2, $3), 2000), sent_at = NULL, finished_at = clock_timestamp()
        FROM chosen WHERE run.id = chosen.id AND chosen.state <> 'running' RETURNING run.id
    )
    SELECT id, state, id IN (SELECT id FROM fenced UNION ALL SELECT id FROM ended) FROM chosen ORDER BY id
    """,  # noqa: S608 — constants
)

#: Parameters: the run, the cancelled attempt's token, its process, the end of its log. The trigger writes the other
#: columns, and deletes the mark.
END = Prepared(
    "rota_end_cancelled",
    ("bigint", "bigint", "bigint", "text"),
    f"""
    WITH ended AS MATERIALIZED (
        UPDATE rota_runs AS run SET state = 'dead', sent_at = NULL, finished_at = clock_timestamp()
        WHERE run.id = $1 AND run.process_id = $3 AND run.state = 'running' AND EXISTS (
            SELECT 1 FROM rota_cancels AS mark WHERE mark.run_id = run.id AND mark.token = $2)
        RETURNING {ENDED}
    ), {attempts.keeping("ended", CANCELLED, log="$4")}
    SELECT error FROM ended
    """,  # noqa: S608 — constants
)

#: Parameter: the process.
OF_PROCESS = Prepared(
    "rota_cancels_of_process", ("bigint",), "SELECT run_id, token FROM rota_cancels WHERE process_id = $1"
)

MARKS = text("SELECT run_id, asked_at, asked_by, reason FROM rota_cancels WHERE run_id = ANY(:run_ids)")


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A run that a cancel has found, with its state before the cancel."""

    run_id: int
    state: State
    #: Whether this cancel has cancelled the run. False if the run is running and was cancelled before.
    is_new: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """A cancellation of a run whose function has not returned yet."""

    run_id: int
    asked_at: datetime
    asked_by: str
    reason: str | None


def cancel(
    on: Session | Connection, run_ids: Collection[int], *, by: str, reason: str | None = None
) -> list[Cancelled]:
    """Cancel the waiting and running runs among ``run_ids`` in the caller's transaction.

    Return these runs in the order of their ids.
    """
    rows = CANCEL.rows(on, list(run_ids), by, reason)
    return [Cancelled(run_id, State(state), is_new) for run_id, state, is_new in rows]


def end(connection: Connection, lease: Lease, log: str | None = None) -> str | None:
    """End a cancelled run whose function has returned. Return the text of the cancellation, or None if the run was not
    cancelled.

    ``log`` is the end of the attempt's log. It is kept with the attempt.
    """
    rows = END.rows(connection, lease.run_id, lease.token, lease.process_id, log)
    return str(rows[0][0]) if rows else None


def listen(connection: Connection, process_id: int) -> None:
    """Notify ``connection``, which is in autocommit, when a run of this process is cancelled."""
    connection.exec_driver_sql(f"LISTEN {CHANNEL}{process_id}")


def of_process(connection: Connection, process_id: int) -> dict[int, int]:
    """Return the cancelled runs that a process has not ended yet. The keys are the tokens of their attempts."""
    return {token: run_id for run_id, token in OF_PROCESS.rows(connection, process_id)}


def marks(connection: Connection, run_ids: Sequence[int]) -> dict[int, Mark]:
    """Return the cancellations of the runs ``run_ids`` that are still running."""
    rows = connection.execute(MARKS, {"run_ids": list(run_ids)}) if run_ids else ()
    return {row.run_id: Mark(row.run_id, row.asked_at, row.asked_by, row.reason) for row in rows}
