"""Leadership: the process that holds the advisory lock ``LEADER_LOCK`` leads, as long as its connection is open.

If the leader's process is stopped or cut off from the network, its connection still holds the lock. As soon as the
leader's lease has expired, a waiting process closes this connection, and PostgreSQL then frees the lock. A leader that
has lost Redis steps down if another worker can lead.

It does no harm if two processes lead: every step is a conditional statement, which takes effect for one process only.
During a deploy there are two leaders, one of each release, if the dispatcher of the new release has steps that the
former release does not have.
"""

import random
from dataclasses import dataclass

from sqlalchemy import Connection, text

from core.ledger import sessions
from core.ledger.prepared import Prepared
from core.ledger.processes import LEADER_LOCK, LOCK_SPACE
from core.ledger.runs import DUE_CHANNEL
from core.observability.events import DispatcherDeposed, emit

#: On average, at most this many processes ask for leadership in one interval, however many processes are waiting.
MOST_ASKING = 10

#: Asks for the lock, and closes the connection of a leader that holds the lock and whose lease has expired.
ASK = Prepared(
    "rota_lead",
    (),
    f"""
    WITH asked AS MATERIALIZED (SELECT pg_try_advisory_lock({LOCK_SPACE}, {LEADER_LOCK}) AS won)
    SELECT asked.won, (SELECT count(*) FROM rota_processes WHERE kind = 'worker'), silent.leader, silent.is_deposed
    FROM asked LEFT JOIN LATERAL (
        SELECT activity.application_name AS leader, pg_terminate_backend(activity.pid) AS is_deposed
        FROM pg_locks AS lock
        JOIN pg_database AS db ON db.oid = lock.database AND db.datname = current_database()
        JOIN pg_stat_activity AS activity ON activity.pid = lock.pid
        WHERE NOT asked.won AND lock.locktype = 'advisory' AND lock.granted AND lock.objsubid = 2
          AND lock.classid = {LOCK_SPACE}::oid AND lock.objid = ({LEADER_LOCK})::oid
          AND NOT EXISTS (
            SELECT 1 FROM rota_processes AS process
            WHERE process.application = activity.application_name AND process.expires_at > clock_timestamp())
    ) AS silent ON true
    """,  # noqa: S608 — constants
)

#: Whether another live worker could lead.
OTHERS = text("""
    SELECT EXISTS (
        SELECT 1 FROM rota_processes
        WHERE kind = 'worker' AND expires_at > clock_timestamp()
          AND application <> current_setting('application_name'))
""")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request for leadership: whether this process leads, and how many workers there are."""

    is_won: bool
    workers: int

    def pause_seconds(self, every_seconds: float) -> float:
        """Return the wait before this process asks again.

        With many workers, the wait is random and grows with their number, so that PostgreSQL does not get more
        requests.
        """
        crowd = self.workers / MOST_ASKING
        return every_seconds if crowd <= 1 else every_seconds * random.uniform(0, 2 * crowd)


def ask(connection: Connection) -> Answer:
    """Ask for leadership. If this process becomes the leader, also listen for notifications of due runs."""
    ((is_won, workers, silent_leader, _),) = ASK.rows(connection)
    if is_won:
        connection.exec_driver_sql(f"LISTEN {DUE_CHANNEL}")
    elif silent_leader is not None:
        emit(DispatcherDeposed(silent_leader))
    return Answer(is_won, workers)


def has_others(connection: Connection) -> bool:
    """Return whether another live worker could lead."""
    return bool(connection.execute(OTHERS).scalar_one())


def wait_for_runs(connection: Connection, timeout_seconds: float) -> bool:
    """Wait for a notification of due runs, at most for the time-out. Return whether a notification came."""
    return sessions.wait_for_notification(connection, timeout_seconds)
