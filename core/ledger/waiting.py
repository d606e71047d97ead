"""Requests with ``unless="waiting"``: they insert no run if a run of the same job and key is already waiting.

The waiting run is locked until the requesting transaction ends, and claims skip a locked run. So the run starts after
that commit, and sees the changes of the transaction. The newest waiting run that is not locked is chosen, so that older
runs can start meanwhile. If all waiting runs are locked, the request inserts another run. So no transaction waits for
another transaction.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from core.ledger.runs import in_schema

#: In a transaction above READ COMMITTED, no run is found: to lock a row that has changed since the snapshot would end
#: that transaction with an error.
FITS = """
    job = :job AND key = :key AND state IN ('queued', 'retrying') AND state = 'queued' AND slot IS NULL
    AND due_at <= statement_timestamp() + :delay AND current_setting('transaction_isolation') = 'read committed'
"""
FIND = f"SELECT id, expires_at, priority FROM ledger.rota_runs WHERE {FITS} AND "  # noqa: S608 — constants
LOCK = "LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED"
#: This query uses the index ``rota_runs_turn``.
OF_KEY = f"{FIND} (exclusive OR key <> '') ORDER BY due_at DESC, id DESC {LOCK}"
#: Runs that may overlap and have no key are not in that index. The query looks for them among the newest runs of the
#: job, with the dispatcher's indexes ``rota_runs_sent`` and ``rota_runs_unsent``.
NEWEST = """id = ANY(ARRAY(
    SELECT id FROM ledger.rota_runs WHERE queue = :queue AND job = :job AND state IN ('queued', 'retrying') AND {}
    LIMIT 100))"""
BY_SENT = NEWEST.format("sent_at IS NOT NULL ORDER BY sent_at DESC")
BY_DUE = NEWEST.format("sent_at IS NULL AND due_at <= statement_timestamp() + :delay ORDER BY due_at DESC")
SENT = f"{FIND} {BY_SENT} ORDER BY sent_at DESC {LOCK}"
UNSENT = f"{FIND} {BY_DUE} ORDER BY due_at DESC {LOCK}"

#: The waiting run gets the later of the two deadlines, and the larger of the two priorities. If the run or the request
#: has no deadline, the run then has none.
EXTEND = """
    UPDATE ledger.rota_runs SET priority = greatest(priority, :priority),
        expires_at = CASE WHEN rota_runs.expires_at IS NOT NULL AND asked.expires_at IS NOT NULL
            THEN greatest(rota_runs.expires_at, asked.expires_at) END
    FROM (SELECT coalesce(
        CAST(:expires_at AS timestamptz),
        statement_timestamp() + :delay + CAST(:expires_in AS interval)) AS expires_at) AS asked
    WHERE id = :run_id
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that inserts no run if a run of the same job and key is waiting."""

    job: str
    key: str
    queue: str
    #: Whether the job has no ``overlap="allow"``.
    exclusive: bool
    delay: timedelta
    expires: timedelta | datetime | None
    priority: int = 0


def lock(session: Session, asked: Asked) -> int | None:
    """Lock a waiting run of the same job and key that is due when ``asked`` would be, or earlier. Return its id.

    Return None if there is no such run, or if other transactions have locked all such runs.
    """
    values = {"job": asked.job, "key": asked.key, "queue": asked.queue, "delay": asked.delay}
    for query in (OF_KEY,) if asked.exclusive or asked.key else (SENT, UNSENT):
        found = session.execute(in_schema(query, session), values).one_or_none()
        if found is not None:
            if found.expires_at is not None or found.priority < asked.priority:
                _extend(session, found.id, asked)
            return int(found.id)
    return None


def _extend(session: Session, run_id: int, asked: Asked) -> None:
    is_span = isinstance(asked.expires, timedelta)
    at, after = (None, asked.expires) if is_span else (asked.expires, None)
    values = {"run_id": run_id, "delay": asked.delay, "expires_at": at, "expires_in": after}
    values["priority"] = asked.priority
    session.execute(in_schema(EXTEND, session), values)
