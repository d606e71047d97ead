"""Records the live processes, and detects dead ones.

A process registers on its own connection. It draws an id, takes the advisory lock (``LOCK_SPACE``, id) for the life of
that connection, and only then makes its row visible. PostgreSQL frees the lock as soon as the process's socket closes,
so a row without its lock means that the process died. A process that sends no heartbeat for ``ROTA_LEASE_SECONDS`` also
counts as dead, which covers a cut cable, a paused virtual machine and SIGSTOP.

A connection can also be cut while its process lives: by a firewall, a pooler or ``pg_terminate_backend``. Such a
process notices this at once, and takes its lock again on another connection. So a process counts as dead only if its
lock is missing at two checks, half a second apart.

While PostgreSQL is away, no process can renew its lease. When PostgreSQL is back, perhaps as a promoted standby, no
process has its lock. A dispatcher that was cut off too gives the processes time to come back.

``end_dead`` deletes the row of a dead process. This ends all leases of the process at once. It also closes the
connections that the process still has, so that a paused process's row locks end with its lease. ``recover`` then makes
the process's runs due again. A process that has registered again by then is not paused and keeps its connections: it
cannot commit work for its old leases.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta

from sqlalchemy import Connection, text

from core.ledger import attempts
from core.ledger.attempts import ENDED
from core.ledger.prepared import Prepared

#: 'ROTA' as four bytes: the first key of all advisory locks that Rota takes.
LOCK_SPACE = 0x524F5441
#: The second key of the lock of the leading dispatcher. A second key above 0 is the id of a process. If the dispatcher
#: of a new release has steps that the previous release does not have, such as waking runs that wait for their turn, the
#: new release uses another number. During a deploy both releases then have a leader, so every step is done.
LEADER_LOCK = -2
#: The ``LEADER_LOCK`` of the previous release.
FORMER_LEADER_LOCK = 0
#: The second key of the lock that a migration takes.
MIGRATION_LOCK = -1
#: The second key of the lock of the leader that accounts for schedules made at run time. If two releases have a leader,
#: only one of them has this lock.
KEY_SLOTS_LOCK = -3

#: After PostgreSQL was restarted or away, every lock is gone, and no process could renew its lease. The processes have
#: this many seconds to come back and release their runs themselves, before they count as dead.
RETURN_SECONDS = 15

NEXT_ID = text("SELECT nextval('rota_process_ids')")
LOCK = text("SELECT pg_advisory_lock(:space, :id)")
REGISTER = text("""
    INSERT INTO rota_processes (id, kind, name, broker_id, queues, threads, reserved, application, release, expires_at)
    VALUES (:id, :kind, :name, :broker_id, :queues, :threads, CAST(:reserved AS jsonb), :application, :release,
            clock_timestamp() + :lease)
""")
RENEW = text("""
    UPDATE rota_processes SET expires_at = clock_timestamp() + :lease
    WHERE id = :id AND expires_at > clock_timestamp() RETURNING id
""")
NAME_STUCK = text("""
    UPDATE rota_processes SET kind = CASE WHEN :is_stuck THEN 'stuck' ELSE 'worker' END
    WHERE id = :id AND kind IN ('worker', 'stuck') RETURNING id
""")
#: ``DEPARTED`` records processes that have left. An earlier part of the statement, ``gone``, deletes the rows of these
#: processes and returns the columns ``LEFT`` and the reason, ``why``.
LEFT = "process.id, kind, name, queues, process.started_at"
DEPARTED = """
    departed AS (
        INSERT INTO rota_departures (process_id, kind, name, queues, started_at, reason)
        SELECT id, kind, name, queues, started_at, why FROM gone
    )
"""
RESIGN = text(f"""
    WITH gone AS (
        DELETE FROM rota_processes AS process WHERE id = :id RETURNING {LEFT}, CAST(:why AS text) AS why
    ), {DEPARTED}
    SELECT count(*) FROM gone
""")  # noqa: S608 — constants

HAS_NO_LOCK = f"""
    NOT EXISTS (
        SELECT 1 FROM pg_locks AS lock JOIN pg_database AS db ON db.oid = lock.database
        WHERE lock.locktype = 'advisory' AND db.datname = current_database() AND lock.granted
          AND lock.classid = {LOCK_SPACE}::oid AND lock.objid = process.id::oid AND lock.objsubid = 2)
"""  # noqa: S608 — a constant
MISSED = text(f"""
    SELECT count(*) FROM rota_processes AS process
    WHERE expires_at > clock_timestamp() AND started_at > pg_postmaster_start_time() AND {HAS_NO_LOCK}
""")  # noqa: S608 — a constant
#: A process that does not hold its lock has died, or has been without a connection for too long. A process that holds
#: its lock sent no heartbeat.
END_DEAD = text(f"""
    WITH gone AS MATERIALIZED (
        DELETE FROM rota_processes AS process
        WHERE CASE WHEN CAST(:patience AS interval) IS NULL THEN expires_at <= clock_timestamp() OR {HAS_NO_LOCK}
                   ELSE expires_at <= clock_timestamp() - CAST(:patience AS interval) END
            AND (started_at > pg_postmaster_start_time()
                OR clock_timestamp() > pg_postmaster_start_time() + interval '{RETURN_SECONDS} seconds')
        RETURNING {LEFT}, broker_id, application, CASE WHEN {HAS_NO_LOCK} THEN 'died' ELSE 'no heartbeat' END AS why
    ), {DEPARTED}
    SELECT id, kind, name, broker_id, queues, application FROM gone
""")  # noqa: S608 — constants

#: Closes the process's old connection, so that PostgreSQL frees the lock. PostgreSQL may not have noticed yet that the
#: connection is lost.
RELEASE = text("""
    SELECT pg_terminate_backend(lock.pid) FROM pg_locks AS lock JOIN pg_database AS db ON db.oid = lock.database
    WHERE lock.locktype = 'advisory' AND db.datname = current_database() AND lock.pid <> pg_backend_pid()
      AND lock.classid = CAST(:space AS oid) AND lock.objid = CAST(:id AS oid) AND lock.objsubid = 2
""")
RESUME = text("""
    UPDATE rota_processes SET expires_at = clock_timestamp() + :lease
    WHERE id = :id AND expires_at > clock_timestamp() AND started_at > pg_postmaster_start_time() RETURNING id
""")

DISCONNECT = text("""
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name = ANY(:applications) AND datname = current_database() AND usename = current_user
      AND NOT EXISTS (SELECT 1 FROM rota_processes WHERE application = application_name)
""")

#: The running runs whose process has no row.
IS_STRANDED = """
    state = 'running' AND NOT EXISTS (SELECT 1 FROM rota_processes AS process WHERE process.id = run.process_id)
"""
#: Whether a process is dead, or a running run has no process. A recovery without work executes only this query.
ANY_GONE = Prepared(
    "rota_any_gone",
    (),
    f"""
    SELECT EXISTS (SELECT 1 FROM rota_processes AS process WHERE expires_at <= clock_timestamp() OR {HAS_NO_LOCK})
        OR EXISTS (SELECT 1 FROM rota_runs AS run WHERE {IS_STRANDED})
    """,  # noqa: S608 — constants
)
RECOVER = text(f"""
    WITH ended AS MATERIALIZED (
        UPDATE rota_runs AS run SET
            state = CASE WHEN crashes + 1 >= :max_crashes THEN 'dead' ELSE 'retrying' END,
            reason = CASE WHEN crashes + 1 >= :max_crashes THEN 'crashes' ELSE 'worker died' END,
            error = format('worker %s died or sent no heartbeat during attempt %s', worker, attempt),
            crashes = crashes + 1, process_id = NULL, sent_at = NULL,
            finished_at = CASE WHEN crashes + 1 >= :max_crashes THEN clock_timestamp() END
        WHERE id IN (
            SELECT id FROM rota_runs AS run WHERE {IS_STRANDED} FOR UPDATE SKIP LOCKED)
        RETURNING {ENDED}, run.job, run.state
    ), {attempts.keeping("ended", "crashed")}
    SELECT id, job, state, reason, error, attempt FROM ended
""")  # noqa: S608 — constants


@dataclass(frozen=True, slots=True)
class Identity:
    """The data with which a process registers."""

    kind: str
    name: str
    #: The application_name of the process's connections. Another process uses it to close them.
    application: str
    broker_id: str | None = None
    queues: tuple[str, ...] = ()
    #: The fingerprint of the process's release.
    release: str | None = None
    #: The number of runs that the process works on at the same time; None for a scheduler.
    threads: int | None = None
    #: The number of threads that are reserved for each of the queues.
    reserved: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A run whose process died, with the values of the run after its recovery."""

    run_id: int
    job: str
    state: str
    reason: str
    error: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Dead:
    """A process that counted as dead and was removed."""

    id: int
    kind: str
    name: str
    broker_id: str | None
    #: The queues that the process consumed.
    queues: tuple[str, ...]


def register(connection: Connection, identity: Identity, lease: timedelta) -> int:
    """Register this process for the life of ``connection``, which is in autocommit. Return the process's id."""
    process_id = int(connection.execute(NEXT_ID).scalar_one())
    connection.execute(LOCK, {"space": LOCK_SPACE, "id": process_id})
    reserved = json.dumps(dict(identity.reserved)) if identity.reserved else None
    described = {each.name: getattr(identity, each.name) for each in fields(identity)}
    described |= {"queues": list(identity.queues), "reserved": reserved}
    connection.execute(REGISTER, {"id": process_id, "lease": lease, **described})
    return process_id


def resume(connection: Connection, process_id: int, lease: timedelta) -> bool:
    """Continue as the process that was registered on a lost connection, and keep all leases of that process.

    Return False if the leases have expired, or if PostgreSQL was restarted: a restart aborts the process's
    transactions.
    """
    parameters = {"space": LOCK_SPACE, "id": process_id}
    connection.execute(RELEASE, parameters)
    connection.execute(LOCK, parameters)
    return connection.execute(RESUME, {"id": process_id, "lease": lease}).first() is not None


def renew(connection: Connection, process_id: int, lease: timedelta) -> bool:
    """Extend all leases of the process to ``lease`` from now. Return False if they have already expired."""
    return connection.execute(RENEW, {"id": process_id, "lease": lease}).first() is not None


def name_stuck(connection: Connection, process_id: int, *, is_stuck: bool) -> bool:
    """Record whether a worker is stuck. Return False if the process has no row."""
    return connection.execute(NAME_STUCK, {"id": process_id, "is_stuck": is_stuck}).first() is not None


def resign(connection: Connection, process_id: int, why: str = "stopped") -> None:
    """Delete the row of a process that ends in an orderly way, and record the reason ``why`` it has left.

    The runs of the process must have been released before.
    """
    connection.execute(RESIGN, {"id": process_id, "why": why})


def is_any_gone(connection: Connection) -> bool:
    """Return whether a process has lost its lock or its lease, or a running run has no process."""
    ((found,),) = ANY_GONE.rows(connection)
    return bool(found)


def misses_any(connection: Connection) -> bool:
    """Return whether a process has lost its lock, because the process died or its connection was cut."""
    return bool(connection.execute(MISSED).scalar_one())


def end_dead(connection: Connection, patience: timedelta | None = None) -> list[Dead]:
    """End the leases of every process that died or whose lease has expired, and close the connections of these
    processes.

    With ``patience``, do this only to processes whose lease expired longer ago than ``patience``. A process that has
    only lost its lock is then left alone.
    """
    rows = connection.execute(END_DEAD, {"patience": patience}).all()
    if rows:
        connection.execute(DISCONNECT, {"applications": [row.application for row in rows]})
    return [Dead(row.id, row.kind, row.name, row.broker_id, tuple(row.queues)) for row in rows]


def recover(connection: Connection, max_crashes: int) -> list[Recovered]:
    """Make the runs of dead processes due again. A run becomes dead if too many processes died while working on it.

    A run that was cancelled ends instead.
    """
    return [Recovered(*row) for row in connection.execute(RECOVER, {"max_crashes": max_crashes})]
