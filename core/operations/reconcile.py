"""Wakes the leading dispatcher, so that it looks for due runs at once."""

from sqlalchemy import Connection, text

from core.jobs.registry import Registry
from core.ledger import history
from core.ledger.audit import Actor
from core.ledger.runs import DUE_CHANNEL
from core.operations import access, queues
from core.operations.json_shape import Shape


class Reconciled(Shape):
    """The numbers of runs at the moment when the dispatcher was woken. They count up to 10,000 runs of each queue."""

    #: Whether a dispatcher leads. Otherwise nothing was woken.
    is_dispatching: bool
    due: int
    later: int
    sent: int
    running: int


def look_now(connection: Connection, registry: Registry, actor: Actor) -> Reconciled:
    """Wake the dispatcher when the caller's transaction commits. Raises Forbidden."""
    access.require(actor, "operator", "waking the dispatcher")
    access.check_unlimited(actor, "waking the dispatcher")
    found = queues.listed(connection, registry)
    connection.execute(text(f"NOTIFY {DUE_CHANNEL}"))
    return Reconciled(
        is_dispatching=history.is_dispatching(connection),
        due=sum(queue.due for queue in found),
        later=sum(queue.later for queue in found),
        sent=sum(queue.sent for queue in found),
        running=sum(queue.running for queue in found),
    )
