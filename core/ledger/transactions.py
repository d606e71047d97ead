"""Finds idle transactions of runs. An idle transaction keeps a connection and locks, and keeps VACUUM from removing
dead rows.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, text

#: A transaction in which the job has executed no statement for this many seconds is reported.
IDLE_SECONDS = 10.0
IS_IDLE = """
    activity.state LIKE 'idle in transaction%'
    AND activity.state_change < clock_timestamp() - make_interval(secs => :seconds)
"""

IDLE = text(f"""
    SELECT activity.pid, extract(epoch FROM clock_timestamp() - activity.state_change) AS seconds
    FROM pg_stat_activity AS activity WHERE activity.pid = ANY(:pids) AND {IS_IDLE}
""")  # noqa: S608 — a constant

#: The idle transactions of all live workers. PostgreSQL cannot tell which run of a process has the transaction, so it
#: may belong to any run that began before it.
OF_WORKERS = text(f"""
    SELECT process.name, activity.pid, extract(epoch FROM clock_timestamp() - activity.state_change) AS seconds,
           ARRAY(SELECT format('%s of %s', run.id, run.job) FROM rota_runs AS run
                 WHERE run.process_id = process.id AND run.state = 'running' AND run.started_at <= activity.xact_start
                 ORDER BY run.id LIMIT 3) AS runs
    FROM rota_processes AS process
    JOIN pg_stat_activity AS activity ON activity.application_name = process.application
    WHERE process.kind = 'worker' AND process.expires_at > clock_timestamp()
      AND activity.datname = current_database() AND {IS_IDLE}
    ORDER BY activity.state_change
""")  # noqa: S608 — a constant


@dataclass(frozen=True, slots=True)
class Idle:
    """An idle transaction of a worker, and the runs that it may belong to."""

    process: str
    pid: int
    seconds: float
    runs: tuple[str, ...]


def idle(connection: Connection, pids: Collection[int]) -> dict[int, float]:
    """Return, for each of the server processes ``pids`` with an idle transaction, how many seconds it has been idle."""
    rows = connection.execute(IDLE, {"pids": list(pids), "seconds": IDLE_SECONDS})
    return {row.pid: float(row.seconds) for row in rows}


def of_workers(connection: Connection) -> list[Idle]:
    """Return the idle transactions of all live workers, the longest first."""
    rows = connection.execute(OF_WORKERS, {"seconds": IDLE_SECONDS})
    return [Idle(row.name, row.pid, float(row.seconds), tuple(row.runs)) for row in rows]
