"""Common parts of the jobs in the workload: their queue, and the records that they write in their own transactions."""

from datetime import timedelta

from sqlalchemy import text

from core import Run

EFFECT = text("""
    INSERT INTO fault_effects (run_id, kind, step, token, attempt, began_at, found)
    VALUES (:run, :kind, :step, :token, :attempt, :began, concat_ws(', ',
        CASE WHEN current_setting('search_path') LIKE '%fault_left%' THEN 'search_path' END,
        CASE WHEN current_setting('TimeZone') = 'Antarctica/Troll' THEN 'time zone' END,
        CASE WHEN current_setting('statement_timeout') = '54321ms' THEN 'statement_timeout' END,
        CASE WHEN to_regclass('pg_temp.fault_left') IS NOT NULL THEN 'temporary table' END,
        CASE WHEN 'fault_left' IN (SELECT pg_listening_channels()) THEN 'LISTEN' END,
        CASE WHEN EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
                          AND classid = 4711) THEN 'advisory lock' END))
""")

QUEUE = "faults"
SECOND = timedelta(seconds=1)
#: So many retries that no series of faults uses them up.
PATIENCE = 50
KEYS = ("a", "b", "c")


def effect(run: Run, kind: str = "done", step: int = 0) -> None:
    """Write an effect in this attempt's transaction."""
    lease = run.work.lease
    assert lease is not None
    values = {"run": run.id, "kind": kind, "step": step, "token": lease.token}
    run.session.execute(EFFECT, {**values, "attempt": run.attempt, "began": run.now})


def query(run: Run, seconds: float) -> None:
    """Run a statement that takes this long."""
    run.session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
