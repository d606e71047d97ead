"""Sends what a transaction asked for once it has committed: messages for its new runs, and live publications.

The rows are the outbox: a run inserted in a transaction is there if and only if that committed. Sending its message
afterwards only makes it start sooner. Where this process has no carrier (an application without Redis), the
notification that went with the commit has the dispatcher send it.
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
    """What one transaction, or one savepoint, will send when the transaction commits."""

    runs: list[OutgoingRun] = field(default_factory=list)
    messages: list[OutgoingMessage] = field(default_factory=list)
    publications: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass(slots=True)
class ProcessCarrier:
    """The way in which this process sends: a worker attaches one, and an application that only enqueues has none.

    There is one for the process, not one for each session: ``enqueue`` takes any session, also one that a plugin or an
    application has made and that knows nothing of a worker around it.
    """

    attached: Carrier | None = None


_of_process = ProcessCarrier()


def attach(carrier: Carrier | None) -> None:
    """Make ``carrier`` this process's way to send; None: it has none."""
    _of_process.attached = carrier


def carrier() -> Carrier | None:
    """This process's way to send, if it has one."""
    return _of_process.attached


def of(session: Session) -> Outbox:
    """The outbox of ``session``'s present transaction, or of the savepoint it is in."""
    transaction = session.get_nested_transaction() or session.get_transaction() or session.begin()
    return _outboxes(session).setdefault(transaction, Outbox())


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
    assert parent is not None, "a savepoint is in a transaction"
    outer = _outboxes(session).setdefault(parent, Outbox())
    outer.runs += outbox.runs
    outer.messages += outbox.messages
    outer.publications += outbox.publications


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    _outboxes(session).pop(transaction, None)  # still there: it was rolled back


def deliver(carrier: Carrier, outbox: Outbox) -> None:
    """Send what is in ``outbox``, best effort: the ledger has the runs, and publications reach those who listen now."""
    try:
        if outbox.runs:
            carrier.send(outbox.runs)
        if outbox.messages:
            carrier.post(outbox.messages)
        for channel, message in outbox.publications:
            carrier.publish(channel, message)
    except Exception as error:  # noqa: BLE001 — the transaction has committed: nothing here may undo or fail it
        emit(OutboxNotDelivered(str(error)))
