"""Answers whether a message in Redis can still be of use to the ledger."""

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import Connection, text

from core.jobs.job import Job
from core.ledger import releases, runs

ENDED = text("""
    SELECT wanted.id FROM unnest(CAST(:run_ids AS bigint[])) AS wanted (id)
    WHERE NOT EXISTS (
        SELECT 1 FROM rota_runs AS run WHERE run.id = wanted.id AND run.state IN ('queued', 'retrying', 'running'))
""")
BEFORE_MS = text("""
    SELECT CAST(extract(epoch FROM clock_timestamp() - make_interval(secs => :seconds)) * 1000 AS bigint)
""")


def before_ms(connection: Connection, seconds: float) -> int:
    """Return the time ``seconds`` ago by the database's clock, in milliseconds since 1970."""
    return int(connection.execute(BEFORE_MS, {"seconds": seconds}).scalar_one())


def ended(connection: Connection, run_ids: Collection[int]) -> set[int]:
    """Return which of the runs ``run_ids`` have ended or do not exist. If such a run is retried, it gets a new
    message.
    """
    return set(connection.execute(ENDED, {"run_ids": list(run_ids)}).scalars()) if run_ids else set()


def never_had(connection: Connection, jobs: Collection[str]) -> set[str]:
    """Return which of ``jobs`` no release has had and no live process may have.

    Until the caller's transaction ends, no process can record a release with one of these jobs.
    """
    if not jobs:
        return set()
    connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
    connection.exec_driver_sql("LOCK TABLE rota_releases IN SHARE MODE")
    return unknown(connection, jobs)


def unknown(connection: Connection, jobs: Collection[str]) -> set[str]:
    """Return which of ``jobs`` no release has had and no live process may have."""
    if not jobs:
        return set()
    had, fleet = releases.last_had(connection, jobs), releases.fleet(connection)
    return {job for job in jobs if job not in had and not fleet.knows(job)}


#: If several processes start together, one of them gets the lock. The lock ends with its transaction.
MAY_REQUEST = text("""
    SELECT pg_try_advisory_xact_lock(hashtext('rota leftovers'), hashtext(current_schema())) AND NOT EXISTS (
        SELECT 1 FROM (SELECT queued_at, state FROM rota_runs WHERE job = :job ORDER BY id DESC LIMIT 1) AS newest
        WHERE queued_at > clock_timestamp() - CAST(:apart AS interval) OR state IN ('queued', 'retrying', 'running'))
""")


def request(connection: Connection, job: Job, apart: timedelta) -> bool:
    """Request a run of ``job``, unless the job's newest run is younger than ``apart``, or has not ended.

    Return whether a run was requested.
    """
    if not connection.execute(MAY_REQUEST, {"job": job.name, "apart": apart}).scalar_one():
        return False
    runs.request(
        connection, job.name, key="", queue=job.queue, args="{}", exclusive=job.exclusive, delay=timedelta(0),
        carried=False,
    )  # fmt: skip
    return True
