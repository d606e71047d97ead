"""Leases: who may work on a run, and who may commit for it.

A claim (``core/ledger/claims.py``) takes a run to ``running``, draws the next fencing token and names the claiming
process. The lease is that row: it is good as long as the run is ``running`` under the same token. A process that dies
or falls silent loses its row in ``rota_processes``, and then its runs (``core/ledger/processes.py``); so one heartbeat
per process renews all its leases.

Every commit is fenced: ``hold`` or the finishing update (``core/ledger/runs.py``) checks the lease in the very
transaction that commits, and locks the run's row until it has. A worker whose run was given to another finds another
token or another state, changes nothing, and must roll back. Nothing but that row is read: while nobody else has been
given the run, its lease is still the only one, however late it is; and no snapshot, however old, shows that row as
anything but what it is, since PostgreSQL does not let a transaction lock a row that has changed behind it.

Times are the database's, never the host's.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from core.errors import LeaseLost
from core.ledger.prepared import Prepared


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


#: Of the run $1 under the token $2 for the process $3. The token alone would not do: see CLAIM in
#: ``core/ledger/claims.py``.
LEASE_IS_GOOD = "run.id = $1 AND run.token = $2 AND run.process_id = $3 AND run.state = 'running'"

#: Run, token, process, progress.
HOLD = Prepared(
    "rota_hold",
    ("bigint", "bigint", "bigint", "text"),
    f"UPDATE ledger.rota_runs AS run SET progress = $4::jsonb WHERE {LEASE_IS_GOOD} RETURNING run.id",  # noqa: S608 — constants
)
#: Run, token, process.
HOLD_UNCHANGED = Prepared(
    "rota_hold_unchanged",
    ("bigint", "bigint", "bigint"),
    f"SELECT 1 FROM ledger.rota_runs AS run WHERE {LEASE_IS_GOOD} FOR NO KEY UPDATE",  # noqa: S608 — constants
)


def hold(session: Session | Connection, lease: Lease, progress: str | None = None) -> None:
    """Check, in the caller's transaction, that ``lease`` is still good, and keep it so until that transaction ends.

    ``progress``, a JSON text, is recorded with it. Raises LeaseLost; the caller then rolls back.
    """
    if progress is None:
        held = HOLD_UNCHANGED.rows(session, lease.run_id, lease.token, lease.process_id)
    else:
        held = HOLD.rows(session, lease.run_id, lease.token, lease.process_id, progress)
    if not held:
        raise LeaseLost(f"run {lease.run_id} of job {lease.job!r} is no longer this worker's (token {lease.token})")


def is_held(connection: Connection, lease: Lease) -> bool:
    """Whether ``lease`` is good at this moment."""
    return bool(HOLD_UNCHANGED.rows(connection, lease.run_id, lease.token, lease.process_id))
