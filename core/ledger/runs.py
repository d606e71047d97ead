"""What happens to a run: it is requested, and it succeeds, fails, or is handed back."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from core.ledger.leases import LEASE_IS_GOOD, Lease
from core.ledger.models import State
from core.ledger.prepared import Prepared

#: An error's text is cut here; the log has all of it.
LONGEST_ERROR = 2000

#: The channel on which a dispatcher listens for runs that were requested where there is no Redis.
DUE_CHANNEL = "rota_due"

REQUEST = text("""
    WITH run AS (
        INSERT INTO rota_runs (job, key, queue, args, exclusive, due_at, sent_at)
        VALUES (:job, :key, :queue, CAST(:args AS jsonb), :exclusive,
                clock_timestamp() + :delay, CASE WHEN :carried THEN clock_timestamp() END)
        RETURNING id
    )
    SELECT id, CASE WHEN NOT :carried THEN pg_notify(:channel, '') END FROM run
""")

#: Run, token, process, result.
SUCCEED = Prepared(
    "rota_succeed",
    ("bigint", "bigint", "bigint", "text"),
    f"""
    UPDATE rota_runs AS run
    SET state = 'succeeded', result = $4::jsonb, error = NULL, process_id = NULL, finished_at = clock_timestamp()
    WHERE {LEASE_IS_GOOD} RETURNING run.id
    """,  # noqa: S608 — constants
)

#: Run, token, process, state, reason, error, delay.
FAIL = Prepared(
    "rota_fail",
    ("bigint", "bigint", "bigint", "text", "text", "text", "interval"),
    f"""
    UPDATE rota_runs AS run
    SET state = $4, reason = $5, error = $6, failures = failures + 1, process_id = NULL, sent_at = NULL,
        due_at = CASE $4 WHEN 'retrying' THEN clock_timestamp() + $7 ELSE due_at END,
        finished_at = CASE $4 WHEN 'dead' THEN clock_timestamp() END
    WHERE {LEASE_IS_GOOD} RETURNING run.id
    """,  # noqa: S608 — constants
)

ANNOUNCE = text("SELECT pg_notify(:channel, '')")

HAND_BACK = text("""
    UPDATE rota_runs
    SET state = 'retrying', reason = :reason, process_id = NULL, sent_at = NULL, due_at = clock_timestamp()
    WHERE state = 'running' AND process_id = :process_id
    RETURNING id
""")


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failed attempt leaves in the ledger."""

    state: State
    reason: str
    error: str
    delay: timedelta = timedelta(0)


def request(
    session: Session | Connection, job: str, *, key: str, queue: str, args: str, exclusive: bool, delay: timedelta,
    carried: bool,
) -> int:  # fmt: skip
    """Insert a run without a slot, in the caller's transaction, and return its id.

    ``args`` is a JSON text. ``carried``: the caller sends the message itself once this is committed; otherwise the
    dispatcher is told, by a notification that goes with the commit.
    """
    parameters = {"job": job, "key": key, "queue": queue, "args": args, "exclusive": exclusive, "delay": delay}
    row = session.execute(REQUEST, {**parameters, "carried": carried, "channel": DUE_CHANNEL}).one()
    return int(row.id)


def announce(connection: Connection) -> None:
    """Tell whoever listens that runs are due which nobody has sent."""
    connection.execute(ANNOUNCE, {"channel": DUE_CHANNEL})


def succeed(session: Session | Connection, lease: Lease, result: str | None) -> bool:
    """Record success in the caller's transaction; False if the lease is lost, and the caller must roll back."""
    return bool(SUCCEED.rows(session, lease.run_id, lease.token, lease.process_id, result))


def fail(connection: Connection, lease: Lease, failure: Failure) -> bool:
    """Record a failed attempt; False if the lease is lost, so that nothing is this worker's to record."""
    error = failure.error[:LONGEST_ERROR]
    values = (str(failure.state), failure.reason, error, failure.delay)
    return bool(FAIL.rows(connection, lease.run_id, lease.token, lease.process_id, *values))


def hand_back(connection: Connection, process_id: int, reason: str) -> list[int]:
    """Give up every run of a process that is ending, without counting it as their failure; return their ids."""
    return list(connection.execute(HAND_BACK, {"process_id": process_id, "reason": reason}).scalars())
