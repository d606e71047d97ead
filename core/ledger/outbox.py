"""What is to happen once a transaction has committed: messages for its new runs, and live publications.

The rows are the outbox: a run inserted in a transaction is there if and only if that committed. Sending its message
afterwards only makes it start sooner. Where this process has no carrier (an application without Redis), the
notification that went with the commit has the dispatcher send it.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from core.ledger.releases import Fleet

logger = logging.getLogger(__name__)

INFO_KEY = "rota.outbox"


class Parcel(NamedTuple):
    """A committed run whose message is to be sent."""

    run_id: int
    job: str
    queue: str


@dataclass(frozen=True, slots=True)
class Letter:
    """A message of the fast lane, to be sent if the transaction commits."""

    job: str
    queue: str
    args: dict[str, Any]


class Carrier(Protocol):
    """What takes messages to workers; Redis, through ``core.worker.actors``."""

    @property
    def carries(self) -> bool:
        """Whether runs are to be sent by it now; if not, workers take them straight from the ledger."""

    def send(self, parcels: Sequence[Parcel]) -> None:
        """Put a message for each run on its queue. May raise; the dispatcher then sends them later."""

    def post(self, letters: Sequence[Letter]) -> None:
        """Put messages of the fast lane on their queues. May raise; they are then lost."""

    def publish(self, channel: str, message: dict[str, Any]) -> None:
        """Publish ``message`` to whoever listens on ``channel`` now."""


class DispatchCarrier(Carrier, Protocol):
    """What a dispatcher asks of a carrier beside that: what became of messages."""

    def oldest_run(self, queue: str) -> tuple[bool, int | None]:
        """Whether messages wait on ``queue``, and which run the oldest carries. Raises redis.RedisError."""

    def queues_with_messages(self) -> set[str]:
        """The queues that have messages, as far as a bounded search has found them. Raises redis.RedisError."""

    def clear_abandoned(self, queue: str, fleet: Fleet) -> Counter[tuple[str, str]]:
        """Empty a queue that nobody serves; what became of the messages of each job. Raises redis.RedisError."""

    def recover(self, broker_id: str, queues: Iterable[str]) -> None:
        """Put back what a dead process had fetched. Raises redis.RedisError."""

    def maintain(self, queues: Iterable[str]) -> None:
        """Put back what silent processes had fetched. Raises redis.RedisError."""


@dataclass(slots=True)
class Outbox:
    """What one transaction, or one savepoint, will send when the transaction commits."""

    parcels: list[Parcel] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    publications: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


_carrier: Carrier | None = None


def attach(carrier: Carrier | None) -> None:
    """Make ``carrier`` this process's way to send; None: it has none."""
    global _carrier
    _carrier = carrier


def carrier() -> Carrier | None:
    """This process's way to send, if it has one."""
    return _carrier


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
    elif _carrier is not None:
        deliver(_carrier, outbox)


def _leave_to(session: Session, parent: SessionTransaction | None, outbox: Outbox) -> None:
    assert parent is not None, "a savepoint is in a transaction"
    outer = _outboxes(session).setdefault(parent, Outbox())
    outer.parcels += outbox.parcels
    outer.letters += outbox.letters
    outer.publications += outbox.publications


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    _outboxes(session).pop(transaction, None)  # still there: it was rolled back


def deliver(carrier: Carrier, outbox: Outbox) -> None:
    """Send what is in ``outbox``, best effort: the ledger has the runs, and publications are for who listens now."""
    try:
        if outbox.parcels:
            carrier.send(outbox.parcels)
        if outbox.letters:
            carrier.post(outbox.letters)
        for channel, message in outbox.publications:
            carrier.publish(channel, message)
    except Exception as error:  # noqa: BLE001 — the transaction has committed: nothing here may undo or fail it
        logger.warning("outbox.not_delivered: %s (the dispatcher will send the runs)", error)
