"""Logs which runs of this process hold a transaction without using it.

A job that waits for a network holds no connection and no transaction, unless it has used ``run.session`` and has not
called ``run.checkpoint`` since. PostgreSQL is asked only about transactions that are old enough to be reported.
"""

import time
from dataclasses import dataclass, field

from sqlalchemy import Connection

from core.ledger import transactions
from core.ledger.leases import Lease
from core.ledger.transactions import IDLE_SECONDS
from core.observability import metrics
from core.observability.events import RunIdleInTransaction, emit


@dataclass(slots=True)
class OpenTransaction:
    """A transaction of a run's session."""

    lease: Lease
    #: The server process of PostgreSQL that has the transaction.
    pid: int
    began: float = field(default_factory=time.monotonic)
    is_told: bool = False


#: The open transactions of the runs of this process, by the identity of their sessions.
_open: dict[int, OpenTransaction] = {}


def begun(session: object, lease: Lease, pid: int) -> None:
    """Remember that the session of a run has begun a transaction."""
    _open[id(session)] = OpenTransaction(lease, pid)


def ended(session: object) -> None:
    """Remember that the session's transaction has ended."""
    _open.pop(id(session), None)


def tell(connection: Connection) -> None:
    """Log and count each transaction that has been idle for ``IDLE_SECONDS``, but each only once."""
    now = time.monotonic()
    old = {each.pid: each for each in list(_open.values()) if not each.is_told and now - each.began >= IDLE_SECONDS}
    if not old:
        return
    for pid, seconds in transactions.idle(connection, old).items():
        lease, old[pid].is_told = old[pid].lease, True
        metrics.idle_in_transaction(lease.job)
        emit(RunIdleInTransaction(lease.job, lease.run_id, round(seconds, 1)))
