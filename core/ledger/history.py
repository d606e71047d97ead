"""Reads runs, slots and the live processes from the ledger, for people."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, select, text

from core.ledger import ids_of_time
from core.ledger.models import RunRow, State
from core.ledger.processes import FORMER_LEADER_LOCK, LEADER_LOCK, LOCK_SPACE
from core.ledger.slots import Watermark

RUNS = RunRow.__table__
#: A run in one of these states never started, so it never blocked another run.
NEVER_AT_WORK = (State.SKIPPED, State.MISSED, State.ORPHANED)

#: Most runs start within this time after their request.
RECENTLY = timedelta(days=1)

NOW = text("SELECT clock_timestamp()")

#: The query reads one index entry per job, however many runs the job has.
JOBS_SEEN = text("""
    WITH RECURSIVE seen AS (
        (SELECT job FROM rota_runs ORDER BY job LIMIT 1)
        UNION ALL
        SELECT (SELECT job FROM rota_runs WHERE job > seen.job ORDER BY job LIMIT 1)
        FROM seen WHERE seen.job IS NOT NULL
    )
    SELECT job FROM seen WHERE job IS NOT NULL
""")

#: The query uses the two partial indexes of waiting runs, so that a long history does not slow it down.
WAITING_ARGS = text("""
    SELECT args FROM rota_runs WHERE job = :job AND state IN ('queued', 'retrying') AND sent_at IS NULL
    UNION ALL
    SELECT args FROM rota_runs WHERE job = :job AND state IN ('queued', 'retrying') AND sent_at IS NOT NULL
    LIMIT :most
""")

#: A process is alive if its lease has not expired and it holds its advisory lock. The row of a process that has died
#: stays until the dispatcher notices the death.
ALIVE = text("""
    SELECT process.id, kind, name, queues, process.started_at, expires_at, threads, reserved, release
    FROM rota_processes AS process
    WHERE expires_at > clock_timestamp() AND EXISTS (
        SELECT 1 FROM pg_locks AS lock JOIN pg_database AS db ON db.oid = lock.database
        WHERE lock.locktype = 'advisory' AND lock.granted AND db.datname = current_database()
          AND lock.classid = CAST(:space AS oid) AND lock.objid = CAST(process.id AS oid) AND lock.objsubid = 2)
    ORDER BY process.id
""")

#: The runs that live processes work on now.
AT_WORK = text("""
    SELECT id AS run, process_id, job, key, attempt, started_at, progress, args FROM rota_runs
    WHERE state = 'running' AND process_id = ANY(:process_ids) ORDER BY id
""")

DEPARTURES = text("""
    SELECT process_id AS id, kind, name, queues, started_at, left_at, reason FROM rota_departures
    WHERE left_at > statement_timestamp() - CAST(:within AS interval) ORDER BY left_at DESC LIMIT :most
""")

IS_DISPATCHING = text("""
    SELECT EXISTS (
        SELECT 1 FROM pg_locks AS lock JOIN pg_database AS db ON db.oid = lock.database
        WHERE lock.locktype = 'advisory' AND lock.granted AND db.datname = current_database()
          AND lock.classid = CAST(:space AS oid) AND lock.objsubid = 2
          AND lock.objid IN (CAST(:lock AS oid), CAST(:former AS oid)))
""")

WATERMARK = text("SELECT spec, accounted_until FROM rota_schedules WHERE job = :job")

#: The last time at which a worker finished a run before an instant, and the first time after it. No run finished
#: between these two times, as in an outage. Of deleted runs, ``rota_success_counts`` has the first and the last end in
#: each minute.
WORKED_AROUND = text("""
    SELECT greatest((SELECT finished_at FROM rota_runs
                     WHERE finished_at <= :instant AND attempt > 0 ORDER BY finished_at DESC LIMIT 1),
                    (SELECT least(last_at, :instant) FROM rota_success_counts
                     WHERE minute <= :instant AND first_at <= :instant ORDER BY minute DESC LIMIT 1)) AS before,
           least((SELECT finished_at FROM rota_runs
                  WHERE finished_at > :instant AND attempt > 0 ORDER BY finished_at LIMIT 1),
                 (SELECT greatest(first_at, :instant) FROM rota_success_counts
                  WHERE minute >= date_trunc('minute', CAST(:instant AS timestamptz)) AND last_at > :instant
                  ORDER BY minute LIMIT 1)) AS after
""")


@dataclass(frozen=True, slots=True)
class Process:
    """A worker or scheduler that is alive."""

    id: int
    kind: str
    name: str
    queues: tuple[str, ...]
    started_at: datetime
    expires_at: datetime
    #: The number of runs that the process works on at the same time. None for a scheduler, and for a process of a Rota
    #: version that does not record this number.
    threads: int | None
    #: The number of threads that are reserved for each queue.
    reserved: Mapping[str, int]
    #: The fingerprint of the process's release.
    release: str | None


@dataclass(frozen=True, slots=True)
class Around:
    """The last time at which a worker finished a run before an instant, and the first time after it."""

    before: datetime | None
    after: datetime | None


Run = Row[Any]


def waiting_args(connection: Connection, job: str, most: int) -> Iterator[dict[str, Any]]:
    """Return the arguments of at most ``most`` waiting runs of ``job``."""
    yield from connection.execute(WAITING_ARGS, {"job": job, "most": most}).scalars()


def now(connection: Connection) -> datetime:
    """Return the current time of the database's clock."""
    instant: datetime = connection.execute(NOW).scalar_one()
    return instant


def jobs_seen(connection: Connection) -> list[str]:
    """Return the names of all jobs that have runs in the ledger, including jobs that are not loaded."""
    return list(connection.execute(JOBS_SEEN).scalars())


def run(connection: Connection, run_id: int) -> Run | None:
    """Return the run with this id."""
    return connection.execute(select(RUNS).where(RUNS.c.id == run_id)).one_or_none()


def of_slots(
    connection: Connection, job: str, key: str, after: datetime, before: datetime, *, most: int | None = None
) -> list[Run]:
    """Return at most ``most`` runs of slots with ``after`` <= slot < ``before``, in the order of their slots."""
    slots = select(RUNS).where(RUNS.c.job == job, RUNS.c.key == key, RUNS.c.slot >= after, RUNS.c.slot < before)
    return list(connection.execute(slots.order_by(RUNS.c.slot).limit(most)).all())


def requested(connection: Connection, job: str, key: str | None, after: datetime, before: datetime) -> list[Run]:
    """Return the runs without a slot that were requested with ``after`` <= queued_at < ``before``, in the order of
    their ids.
    """
    first, last = ids_of_time.between(connection, after, before)
    requests = select(RUNS).where(
        RUNS.c.job == job, RUNS.c.slot.is_(None), RUNS.c.queued_at >= after, RUNS.c.queued_at < before,
        RUNS.c.id.between(first, last),
    )  # fmt: skip
    if key is not None:
        requests = requests.where(RUNS.c.key == key)
    return list(connection.execute(requests.order_by(RUNS.c.id)).all())


def last_requested(connection: Connection, job: str, before: datetime) -> Run | None:
    """Return the last run without a slot that was requested of a job before an instant."""
    requests = select(RUNS).where(
        RUNS.c.job == job, RUNS.c.slot.is_(None), RUNS.c.queued_at < before,
        RUNS.c.id < ids_of_time.until(connection, before),
    )  # fmt: skip
    return connection.execute(requests.order_by(RUNS.c.id.desc()).limit(1)).one_or_none()


def rivals(connection: Connection, run: Run, instant: datetime) -> list[Run]:
    """Return the other runs of the same job and key whose last attempt was running at ``instant``.

    First, the runs are read that were requested in the day before. Only if there is no rival among them, all earlier
    runs of the job are read.
    """
    at_work = select(RUNS).where(
        RUNS.c.job == run.job,
        RUNS.c.key == run.key,
        RUNS.c.id != run.id,
        RUNS.c.exclusive,
        RUNS.c.state.not_in(NEVER_AT_WORK),
        RUNS.c.started_at <= instant,
        (RUNS.c.finished_at >= instant) | RUNS.c.finished_at.is_(None),
    )
    first, last = ids_of_time.between(connection, instant - RECENTLY, instant)
    recent, earlier = at_work.where(RUNS.c.id.between(first, last)), at_work.where(RUNS.c.id < first)
    found = connection.execute(recent.order_by(RUNS.c.id)).all()
    return list(found or connection.execute(earlier.order_by(RUNS.c.id)).all())


def next_served(connection: Connection, run: Run) -> Run | None:
    """Return the run of the next slot of the same job and key that was not missed."""
    later = select(RUNS).where(
        RUNS.c.job == run.job, RUNS.c.key == run.key, RUNS.c.slot > run.slot, RUNS.c.state != State.MISSED
    )
    return connection.execute(later.order_by(RUNS.c.slot).limit(1)).one_or_none()


def first_slot(connection: Connection, job: str, key: str) -> datetime | None:
    """Return the oldest recorded slot of a job and key."""
    slots = select(RUNS.c.slot).where(RUNS.c.job == job, RUNS.c.key == key, RUNS.c.slot.is_not(None))
    return connection.execute(slots.order_by(RUNS.c.slot).limit(1)).scalar_one_or_none()


def watermark(connection: Connection, job: str) -> Watermark | None:
    """Return the time up to which a job's slots are accounted for, or None if they are not accounted for."""
    row = connection.execute(WATERMARK, {"job": job}).one_or_none()
    return Watermark(row.spec, row.accounted_until) if row else None


def worked_around(connection: Connection, instant: datetime) -> Around:
    """Return the last time at which any worker finished a run before ``instant``, and the first time after it."""
    row = connection.execute(WORKED_AROUND, {"instant": instant}).one()
    return Around(row.before, row.after)


def alive(connection: Connection) -> list[Process]:
    """Return the processes that are alive."""
    rows = connection.execute(ALIVE, {"space": LOCK_SPACE}).all()
    return [Process(**{**row._mapping, "queues": tuple(row.queues), "reserved": row.reserved or {}}) for row in rows]


def at_work(connection: Connection, process_ids: Sequence[int]) -> list[Row[Any]]:
    """Return the runs that these processes work on now, the oldest first."""
    return list(connection.execute(AT_WORK, {"process_ids": list(process_ids)}).all())


def departures(connection: Connection, within: timedelta, most: int) -> list[Row[Any]]:
    """Return at most ``most`` processes that left in the last ``within``, the newest first."""
    return list(connection.execute(DEPARTURES, {"within": within, "most": most}).all())


def is_dispatching(connection: Connection) -> bool:
    """Return whether a dispatcher of this release or of the previous release leads."""
    locks = {"space": LOCK_SPACE, "lock": LEADER_LOCK, "former": FORMER_LEADER_LOCK}
    return bool(connection.execute(IS_DISPATCHING, locks).scalar_one())


def serves(processes: Sequence[Process], queue: str) -> bool:
    """Return whether one of ``processes`` is a worker that takes runs from ``queue``."""
    return any(process.kind == "worker" and queue in process.queues for process in processes)
