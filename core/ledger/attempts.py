"""Keeps each attempt that did not succeed, and each success that follows such an attempt.

The statement that ends an attempt also keeps the attempt, so no attempt is missing, even if a process dies. A run that
succeeds in its first attempt has no row in this table: the run's own row has the times of the attempt, and the success
needs no further statement.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

#: At most this many attempts of a run are kept: the newest ones.
MOST_KEPT = 100
#: The columns that a statement must return for ``keeping`` when it ends attempts.
ENDED = "run.id, run.attempt, run.started_at, run.worker, run.reason, run.error"

OF_RUN = text("SELECT * FROM rota_attempts WHERE run_id = :run_id ORDER BY attempt")


def keeping(
    ended: str, outcome: str, *, error: str = "error", traceback: str = "NULL", log: str = "NULL", among: str = "true",
    ledger: str = "",
) -> str:  # fmt: skip
    """Return two parts of a WITH clause: ``kept`` keeps the attempts of the runs in ``ended``, and ``forgotten``
    deletes their attempts beyond the newest ``MOST_KEPT``.

    ``ended`` is the name of an earlier part of that clause, which returns the new values of the columns ``ENDED`` for
    each run. The other parameters are SQL expressions. ``among`` is a condition: only attempts that meet it are kept.
    ``ledger`` is the prefix of the table. The outcome of an attempt of a cancelled run is always ``cancelled``. After
    an attempt was released uncounted, the next attempt has the same number and replaces the released one in this table.
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
    """Return the kept attempts of a run, the oldest first."""
    return connection.execute(OF_RUN, {"run_id": run_id}).all()
