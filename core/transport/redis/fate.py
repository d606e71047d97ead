"""Decides about messages whose job this process does not have: one rule for single messages and for whole queues."""

from enum import StrEnum
from typing import Any

from dramatiq.message import Message

from core.ledger.releases import Fleet
from core.transport.messages import RUN_ID


class Fate(StrEnum):
    """The decision about a message."""

    #: A live process has its job, or may have it: leave it to that.
    SERVED = "served"
    #: No live process has its job, and the ledger has its run, which it sends again if the job returns.
    DROPPED = "dropped"
    #: No live process has its job, and the message is all there is.
    ORPHANED = "orphaned"


def fate(message: Message[Any], fleet: Fleet) -> Fate:
    """Decide about ``message`` by what ``fleet`` knows of its job."""
    if fleet.knows(message.actor_name):
        return Fate.SERVED
    return Fate.DROPPED if RUN_ID in message.options else Fate.ORPHANED
