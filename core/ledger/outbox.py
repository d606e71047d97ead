"""Sends a transaction's messages and publications after the commit of the transaction.

The rows of the runs are the outbox: a run that a transaction inserted exists if and only if the transaction committed.
A message sent directly after the commit only lets the run start sooner. If this process has no carrier (an application
without Redis), the commit sends a notification, and the dispatcher then sends the message.
"""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from core.ledger.carrier import Carrier, OutgoingMessage, OutgoingRun
from core.observability.events import OutboxNotDelivered, emit

INFO_KEY = "rota.outbox"


@dataclass(slots=True)
class Outbox:
    """The messages and publications that one transaction or savepoint sends when the transaction commits."""

    runs: list[OutgoingRun] = field(default_factory=list)
    messages: list[OutgoingMessage] = field(default_factory=list)
    publications: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass(slots=True)
class ProcessCarrier:
    """The carrier of this process. A worker attaches a carrier. An application that only enqueues has none.

    There is one carrier per process, not one per session: ``enqueue`` accepts any session, including a session that a
    plugin or an application created without knowing about a worker.
    """

    attached: Carrier | None = None


_of_process = ProcessCarrier()


def attach(carrier: Carrier | None) -> None:
    """Make ``carrier`` this process's carrier. With None, the process has no carrier."""
    _of_process.attached = carrier


def carrier() -> Carrier | None:
    """Return this process's carrier, or None if it has none."""
    return _of_process.attached


def of(session: Session) -> Outbox:
    """Return the outbox of ``session``'s current transaction or savepoint."""
    transaction = session.get_nested_transaction() or session.get_transaction() or session.begin()
    return _outboxes(session).setdefault(transaction, Outbox())


def room(session: Session, queue: str, wanted: int, priority: int) -> int:
    """Return how many of the ``wanted`` runs this process may send after the commit of ``session``."""
    attached = carrier()
    if attached is None or not attached.carries:
        return 0
    return attached.room(queue, wanted, priority, pending=len(of(session).runs))


def _outboxes(session: Session) -> dict[SessionTransaction | None, Outbox]:
    outboxes: dict[SessionTransaction | None, Outbox] = session.info.setdefault(INFO_KEY, {})
    return outboxes


@event.listens_for(Session, "after_commit")
def _committed(session: Session) -> None:
    savepoint = session.get_nested_transaction()
    transaction = savepoint or session.get_transaction()
    outbox = _outboxes(session).pop(transaction, None) if transaction is not None else None
    if outbox is None:
        return
    if savepoint is not None:
        _leave_to(session, savepoint.parent, outbox)
    elif (attached := carrier()) is not None:
        deliver(attached, outbox)


def _leave_to(session: Session, parent: SessionTransaction | None, outbox: Outbox) -> None:
    assert parent is not None, "a savepoint has a parent transaction"
    outer = _outboxes(session).setdefault(parent, Outbox())
    outer.runs += outbox.runs
    outer.messages += outbox.messages
    outer.publications += outbox.publications


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    _outboxes(session).pop(transaction, None)  # the outbox is still there if the savepoint was rolled back


def deliver(carrier: Carrier, outbox: Outbox) -> None:
    """Send the content of ``outbox``. The dispatcher later sends the runs that could not be sent."""
    try:
        if outbox.runs:
            carrier.send(outbox.runs)
        if outbox.messages:
            carrier.post(outbox.messages)
        for channel, message in outbox.publications:
            carrier.publish(channel, message)
    except Exception as error:  # noqa: BLE001 — the transaction has committed, so no error may reach its caller
        emit(OutboxNotDelivered(str(error)))
