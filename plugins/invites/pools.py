"""Pools of seats: the turn of a pool, and the order in which everything of this plugin is locked.

**The turn.** A transaction that gives seats of a pool, or changes the waiting list of the pool, first takes the pool's
*turn*, an advisory lock that ends with the transaction. So seats are given one after another, and a transaction that
has the turn sees everything that the earlier ones have committed. A count that is read before the turn may be wrong,
and SKIP LOCKED would turn people away although seats are free.

**The order of locks**, which prevents deadlocks: turns in the order of the pools' names, the code, teams in the order
of their ids, seats in the order of their ids, requests. Rows of the waiting list change under the turn only. Moves
change while the team of the old seat, or of the new seat, is locked.

An application that calls several functions in one transaction should do so for one pool, and commit soon: until then,
nobody else gets a seat of this pool. Its transaction must be READ COMMITTED, PostgreSQL's default.
"""

from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import enqueue

CONSUME = "consume-waiting-queue"
#: The names of the turns among this database's advisory locks begin with this.
TURN = "invites.pool."


def take_turn(session: Session, *pools: str) -> None:
    """Take the turns of pools. They end with the transaction."""
    for pool in sorted({*pools}):
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(TURN + pool, 0))))


def wake(session: Session, pools: Iterable[str]) -> None:
    """Request a run that gives the free seats of each pool, when ``session`` commits."""
    for pool in sorted({*pools}):
        enqueue(session, CONSUME, key=pool, args={"pool": pool}, unless="waiting")
