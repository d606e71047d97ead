"""Leases: the right of one process to work on a run, and to commit for it.

A claim (``core/ledger/claims.py``) sets a run to ``running``, draws the next fencing token and records the claiming
process. A lease has no row of its own: it is good as long as the run is ``running`` with the same token and process. A
process that dies or sends no heartbeat loses its row in ``rota_processes``, and then its runs
(``core/ledger/processes.py``). So one heartbeat per process renews all its leases.

Every commit is fenced: ``hold`` or the finishing update (``core/ledger/runs.py``) checks the lease in the transaction
that commits, and locks the run's row until the commit. If the run was given to another process, the check finds another
token or state and changes nothing, and the worker must roll back. The check reads only the run's row. As long as no
other process has been given the run, the lease is the only lease of the run, even if it has expired. An old snapshot
cannot show an outdated row, since PostgreSQL does not let a transaction lock a row that has changed since its snapshot.

All times are those of the database's clock, never of the host's clock.
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
    #: The time of the claim, by the database's clock.
    claimed_at: datetime
    due_at: datetime
    #: The names of the limits that the run holds with its lease; None for a run without limits.
    limits: list[str] | None = None


#: The session of a run has its lease in ``Session.info`` under this key.
OF_SESSION = "rota.lease"
#: Parameters: the run, its token, the process. The token alone is not enough: see CLAIM in ``core/ledger/claims.py``.
#: With ``coalesce``, PostgreSQL looks the run up by its id. Without ``coalesce``, PostgreSQL would choose the index of
#: running runs, which still has entries of all runs that have ended since the last vacuum. A success would then take
#: twice as much of PostgreSQL's time.
LEASE_IS_GOOD = "run.id = $1 AND run.token = $2 AND run.process_id = $3 AND coalesce(run.state, '') = 'running'"

#: Parameters: the run, its token, the process, the progress.
HOLD = Prepared(
    "rota_hold",
    ("bigint", "bigint", "bigint", "text"),
    f"UPDATE ledger.rota_runs AS run SET progress = $4::jsonb WHERE {LEASE_IS_GOOD} RETURNING run.id",  # noqa: S608 — constants
)
#: Parameters: the run, its token, the process.
HOLD_UNCHANGED = Prepared(
    "rota_hold_unchanged",
    ("bigint", "bigint", "bigint"),
    f"SELECT 1 FROM ledger.rota_runs AS run WHERE {LEASE_IS_GOOD} FOR NO KEY UPDATE",  # noqa: S608 — constants
)


def of(session: Session) -> Lease | None:
    """Return the lease of the run that works in this session, or None if the session belongs to no run."""
    lease: Lease | None = session.info.get(OF_SESSION)
    return lease


def hold(session: Session | Connection, lease: Lease, progress: str | None = None) -> None:
    """Check, in the caller's transaction, that ``lease`` is good, and keep it good until that transaction ends.

    ``progress``, a JSON text, is recorded with the check. Raises LeaseLost. The caller must then roll back.
    """
    if progress is None:
        held = HOLD_UNCHANGED.rows(session, lease.run_id, lease.token, lease.process_id)
    else:
        held = HOLD.rows(session, lease.run_id, lease.token, lease.process_id, progress)
    if not held:
        raise lost(lease)


def lost(lease: Lease) -> LeaseLost:
    """Return the error for a lease that is not good any longer."""
    return LeaseLost(f"this worker no longer owns run {lease.run_id} of job {lease.job!r} (token {lease.token})")


def is_held(connection: Connection, lease: Lease) -> bool:
    """Return whether ``lease`` is good now."""
    return bool(HOLD_UNCHANGED.rows(connection, lease.run_id, lease.token, lease.process_id))
