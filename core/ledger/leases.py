"""Leases: who may work on a run, and who may commit for it.

A run is claimed by one statement that takes it to ``running``, draws the next fencing token and names the claiming
process. The lease is that row: it is good as long as the run is ``running`` under the same token *and* its process is
alive, which is to say that the process's row in ``rota_processes`` exists and has not expired. So one heartbeat per
process renews all its leases, and ending a process's row ends them all (see ``core/ledger/processes.py``).

Every commit is fenced: ``hold`` or the finishing update (``core/ledger/runs.py``) checks the lease in the very
transaction that commits, and locks the run's row until it has. A worker that was paused past its lease finds another
token, another state or no process row, changes nothing, and must roll back. Expired leases cannot be renewed, so a
process that wakes up late does not revive them.

Two runs of one (job, key) cannot both be ``running``: a claim sees the rival and steps back, and when two claims race
past each other's sight the partial unique index ``rota_runs_lease`` stops the second, which then looks again.

Times are the database's, never the host's.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.errors import LeaseLost

#: A claim that loses to a rival it could not see looks again; the rival is then visible.
CLAIM_LOOKS = 3


class Verdict(StrEnum):
    """What became of a claim."""

    RUNNING = "running"
    #: Another run of the same job and key is at work, and this one had not begun.
    SKIPPED = "skipped"
    #: The same, but this run is being retried: it waits for the other.
    WAITING = "waiting"
    #: Its time has not come; the dispatcher will send it when it has.
    EARLY = "early"
    #: It is over, someone else has it, or this process has no lease to give.
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed run and the right to work on it."""

    run_id: int
    token: int
    process_id: int
    job: str
    key: str
    slot: datetime | None
    attempt: int
    failures: int
    args: dict[str, Any]
    #: The database's clock at the claim.
    claimed_at: datetime
    due_at: datetime


LEASE_IS_GOOD = """
    run.id = :run_id AND run.token = :token AND run.state = 'running' AND EXISTS (
        SELECT 1 FROM rota_processes AS process
        WHERE process.id = run.process_id AND process.expires_at > clock_timestamp())
"""

CLAIM = text("""
    WITH candidate AS MATERIALIZED (
        SELECT id, job, key, exclusive, attempt, due_at <= clock_timestamp() AS due
        FROM rota_runs
        WHERE id = :run_id AND state IN ('queued', 'retrying') AND EXISTS (
            SELECT 1 FROM rota_processes AS process
            WHERE process.id = :process_id AND process.expires_at > clock_timestamp())
        FOR UPDATE
    ), verdict AS MATERIALIZED (
        SELECT id, CASE
            WHEN NOT due THEN 'early'
            WHEN NOT exclusive OR NOT EXISTS (
                SELECT 1 FROM rota_runs AS rival
                WHERE rival.job = candidate.job AND rival.key = candidate.key
                  AND rival.state = 'running' AND rival.exclusive) THEN 'running'
            WHEN attempt = 0 THEN 'skipped'
            ELSE 'waiting' END AS word
        FROM candidate
    )
    UPDATE rota_runs AS run SET
        state = CASE WHEN word IN ('running', 'skipped') THEN word ELSE state END,
        reason = CASE word WHEN 'running' THEN NULL WHEN 'early' THEN reason ELSE 'overlap' END,
        attempt = attempt + (word = 'running')::int,
        token = CASE word WHEN 'running' THEN nextval('rota_tokens') ELSE token END,
        process_id = CASE word WHEN 'running' THEN :process_id END,
        worker = CASE word WHEN 'running' THEN :worker ELSE worker END,
        started_at = CASE word WHEN 'running' THEN clock_timestamp() ELSE started_at END,
        finished_at = CASE word WHEN 'skipped' THEN clock_timestamp() END,
        sent_at = CASE WHEN word IN ('running', 'skipped') THEN sent_at END,
        due_at = CASE word WHEN 'waiting' THEN clock_timestamp() + interval '1 second' ELSE due_at END
    FROM verdict WHERE run.id = verdict.id
    RETURNING word, run.id, token, process_id, job, key, slot, attempt, failures, args, due_at,
              clock_timestamp() AS claimed_at
""")

HOLD = text(f"""
    UPDATE rota_runs AS run SET progress = CAST(:progress AS jsonb) WHERE {LEASE_IS_GOOD} RETURNING run.id
""")  # noqa: S608 — both parts are constants

HOLD_UNCHANGED = text(f"""
    SELECT 1 FROM rota_runs AS run WHERE {LEASE_IS_GOOD} FOR NO KEY UPDATE
""")  # noqa: S608 — both parts are constants


def claim(connection: Connection, run_id: int, *, process_id: int, worker: str) -> tuple[Verdict, Lease | None]:
    """Take ``run_id`` for this process, in one round trip on an autocommit connection.

    Returns the verdict, with a lease if and only if it is RUNNING.
    """
    parameters = {"run_id": run_id, "process_id": process_id, "worker": worker}
    for look in range(CLAIM_LOOKS):
        try:
            row = connection.execute(CLAIM, parameters).one_or_none()
            return (Verdict.NONE, None) if row is None else (Verdict(row.word), _lease(row))
        except IntegrityError:
            if look == CLAIM_LOOKS - 1:
                raise
    raise AssertionError("unreachable")


def _lease(row: Row[Any]) -> Lease | None:
    if row.word != Verdict.RUNNING:
        return None
    return Lease(
        row.id,
        row.token,
        row.process_id,
        row.job,
        row.key,
        row.slot,
        row.attempt,
        row.failures,
        row.args,
        row.claimed_at,
        row.due_at,
    )


def hold(session: Session | Connection, lease: Lease, progress: str | None = None) -> None:
    """Check, in the caller's transaction, that ``lease`` is still good, and keep it so until that transaction ends.

    ``progress``, a JSON text, is recorded with it. Raises LeaseLost; the caller then rolls back.
    """
    parameters = {"run_id": lease.run_id, "token": lease.token}
    if progress is None:
        held = session.execute(HOLD_UNCHANGED, parameters).first()
    else:
        held = session.execute(HOLD, {**parameters, "progress": progress}).first()
    if held is None:
        raise LeaseLost(f"run {lease.run_id} of job {lease.job!r} is no longer this worker's (token {lease.token})")
