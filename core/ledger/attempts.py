"""The attempts of runs that are kept: those that did not succeed, and a success that comes after them.

The statement that ends an attempt also keeps it, so none is missing, whichever process dies. A run that succeeds in its
first attempt has no row here: its own row has its times, and nothing is added to its path.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

#: The newest attempts of a run are kept, at most this many.
MOST_KEPT = 100
#: Columns that an ending statement returns for ``keeping``.
ENDED = "run.id, run.attempt, run.started_at, run.worker, run.reason, run.error"

OF_RUN = text("SELECT * FROM rota_attempts WHERE run_id = :run_id ORDER BY attempt")


def keeping(
    ended: str, outcome: str, *, error: str = "error", traceback: str = "NULL", log: str = "NULL", among: str = "true",
    ledger: str = "",
) -> str:  # fmt: skip
    """The parts ``kept`` and ``forgotten`` of a WITH clause: they keep the attempts of the runs that ``ended`` returns.

    ``ended`` is a part before them, which returns ``ENDED`` of each run that matters as it is now. The others are SQL
    expressions of its columns or of parameters: ``among`` is the condition on the runs whose attempts are kept.
    ``ledger`` is the prefix of the table. The outcome of an attempt at a cancelled run is always ``cancelled``. An
    attempt that was released uncounted gives its number to the next, which replaces it here.
    """
    return f"""
    kept AS (
        INSERT INTO {ledger}rota_attempts AS former
            (run_id, attempt, started_at, ended_at, worker, outcome, reason, error, traceback, log)
        SELECT id, attempt, started_at, clock_timestamp(), worker,
               CASE reason WHEN 'cancelled' THEN reason ELSE '{outcome}' END, reason, {error}, {traceback}, {log}
        FROM {ended} WHERE {among}
        ON CONFLICT (run_id, attempt) DO UPDATE SET
            started_at = excluded.started_at, ended_at = excluded.ended_at, worker = excluded.worker,
            outcome = excluded.outcome, reason = excluded.reason, error = excluded.error,
            traceback = excluded.traceback, log = excluded.log
    ), forgotten AS (
        DELETE FROM {ledger}rota_attempts AS old USING {ended}
        WHERE {among} AND old.run_id = {ended}.id AND old.attempt <= {ended}.attempt - {MOST_KEPT}
    )
    """  # noqa: S608 — the callers' own words


def of_run(connection: Connection, run_id: int) -> Sequence[Row[Any]]:
    """The kept attempts of a run, oldest first."""
    return connection.execute(OF_RUN, {"run_id": run_id}).all()
